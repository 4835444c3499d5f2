/* The undo window: confirm, revert, the timer and delete race for one server, for the model checker Spin.
 *
 * The guest runs at the target, the source keeps its sealed copy. Four callers come at any time, two conductors work
 * on one journal, orders come late or twice, and the source may fall silent for good at any point.
 *
 * To be proved: no copy is deleted unless another is left (but by a delete); confirm and revert never both act; never
 * two runners; in the end what was promised has come true, or only the silent source's word is missing.
 *
 * Switches take the guards out: NO_ONCE, NO_REVISION, NO_CHECK. README.md tells what happens then.
 */

#define MESSAGES 7      /* one more than the orders that one run draws; too few would show as a run that ends badly */

mtype = { confirm, revert, delete };                                            /* the segments */
mtype = { retire_source };                                                      /* the rows of CONFIRM, */
mtype = { check_source, stop_target, start_source, discard_target };            /* of REVERT, */
mtype = { remove_guest, remove_source };                                        /* and of DELETE */

#define SOURCE 0
#define TARGET 1
#define HOST_OF(s) ((s == stop_target || s == discard_target || s == remove_guest) -> TARGET : SOURCE)

#ifdef NO_CHECK
#define FIRST_OF_REVERT stop_target
#else
#define FIRST_OF_REVERT check_source
#endif
#define FIRST(v) (v == confirm -> retire_source : (v == revert -> FIRST_OF_REVERT : remove_guest))
#define NEXT(s) (s == check_source -> stop_target : (s == stop_target -> start_source : \
    (s == start_source -> discard_target : (s == remove_guest -> remove_source : 0))))

/* ---- The journal ---- */
mtype verdict;                  /* 0: the window is open */
mtype segment[4];
byte segments, revision, number, current;
mtype awaiting;                 /* the order that is out, of the current segment */

/* ---- What is under way: an order that was sent stays, and may be taken late ---- */
typedef Order { mtype step; byte number }
Order sent[MESSAGES];
byte posted;

/* ---- The hosts ---- */
byte obeyed[2];                 /* the newest order, in the ledger; its report is under way at once */
bool runs[2], copy[2] = true, silent, silent_when_asked;
bool confirm_acts, revert_acts, deleting, over, well;

ltl keeps_a_copy { [] (copy[SOURCE] || copy[TARGET] || deleting) }
ltl one_verdict { [] !(confirm_acts && revert_acts) }
ltl one_runner { [] !(runs[SOURCE] && runs[TARGET]) }
ltl ends { <> over }
ltl ends_well { [] (over -> well) }

/* ============================================ the callers ============================================ */

inline append(v) { assert(segments < 4); segment[segments] = v; segments++; revision++ }

/* Confirm and revert: the verdict is set where none is, in one statement; a caller who comes too late is refused. */
proctype Caller(mtype v) {
    if
#ifdef NO_ONCE
    :: atomic { verdict == 0 -> silent_when_asked = silent }; atomic { verdict = v; append(v) }
#else
    :: atomic { verdict == 0 -> silent_when_asked = silent; verdict = v; append(v) }
#endif
    :: true         /* never comes, or is refused */
    fi
}

/* Delete outranks: no verdict is taken after it, and what is being carried out ends first. */
proctype Deleter() {
    if
    :: atomic { verdict = delete; deleting = true; append(delete) }
    :: true
    fi
}

/* ============================================= the hosts ============================================= */

#define TAKE(i) \
    :: atomic { (posted > i && HOST_OF(sent[i].step) == h && !(h == SOURCE && silent) \
                 && sent[i].number > obeyed[h]) -> obeyed[h] = sent[i].number; act(sent[i].step) }

inline act(what) {
    if
    :: what == retire_source -> copy[SOURCE] = false; confirm_acts = true
    :: what == check_source -> skip
    :: what == stop_target -> runs[TARGET] = false; revert_acts = true
    :: what == start_source -> runs[SOURCE] = copy[SOURCE]
    :: what == discard_target || what == remove_guest -> runs[TARGET] = false; copy[TARGET] = false
    :: what == remove_source -> runs[SOURCE] = false; copy[SOURCE] = false
    fi
}

proctype Agent(byte h) {
end: do
    TAKE(0) TAKE(1) TAKE(2) TAKE(3) TAKE(4) TAKE(5) TAKE(6)
    od
}

proctype Silence() {
    if
    :: silent = true
    :: true
    fi
}

/* ============================================ the conductors ============================================ */

/* Two of them, each with what it last read. What it writes stands only if nobody has written since. */
typedef Row { byte revision; byte number; byte current; byte segments; mtype awaiting }

#ifdef NO_REVISION      /* the bound only keeps the broken model finite */
#define UNCHANGED (posted < MESSAGES && revision < 8)
#else
#define UNCHANGED (posted < MESSAGES && row.revision == revision)
#endif

inline put_order(what) {
    number = row.number + 1; current = row.current; awaiting = what; revision++;
    sent[posted].step = what; sent[posted].number = number; posted++
}

inline go_on() {
    if
    :: NEXT(row.awaiting) != 0 -> put_order(NEXT(row.awaiting))
    :: else -> end_segment()
    fi
}

inline end_segment() { current = row.current + 1; awaiting = 0; number = row.number; revision++ }

#define BEGINS (row.awaiting == 0 && row.current < row.segments)
#define ANSWERED (row.awaiting != 0 && obeyed[HOST_OF(row.awaiting)] == row.number && SUCCEEDED)
#define SUCCEEDED (row.awaiting != start_source || runs[SOURCE])    /* a guest without its disk does not start */
#define OWABLE (row.awaiting == retire_source || row.awaiting == discard_target \
    || row.awaiting == remove_guest || row.awaiting == remove_source)

proctype Conductor() {
    Row row;
end: do
    :: atomic { row.revision != revision -> row.revision = revision; row.number = number;
        row.current = current; row.segments = segments; row.awaiting = awaiting }
    :: atomic { BEGINS && UNCHANGED -> put_order(FIRST(segment[row.current])) }
    :: atomic { ANSWERED && UNCHANGED -> go_on() }
    :: atomic { OWABLE && UNCHANGED -> go_on() }            /* a debt: nobody waits for the clean-up */
    /* A deleted server needs the silent source's word no more. */
    :: atomic { row.awaiting == start_source && verdict == delete && UNCHANGED -> end_segment() }
    /* The revert refuses before anything is touched, and the window is open again. */
    :: atomic { row.awaiting == check_source && UNCHANGED -> end_segment();
        verdict = (verdict == delete -> delete : 0) }
    od
}

/* When nothing can happen any more: has what was promised come true? */
#define NO_ORDER_OUT (awaiting == 0 && current == segments)
#define SOURCE_OWES  (awaiting != 0 && silent && HOST_OF(awaiting) == SOURCE)
#define KEPT         (runs[TARGET])
#define CONFIRMED    (runs[TARGET] && (silent || !copy[SOURCE]))
#define REVERTED     (!silent_when_asked && (silent || (runs[SOURCE] && !copy[TARGET])))
#define DELETED      (silent || !(runs[SOURCE] || runs[TARGET] || copy[SOURCE] || copy[TARGET]))

active proctype Ending() {
    atomic {
        runs[TARGET] = true;
        run Caller(confirm); run Caller(revert); run Caller(confirm);           /* the last one is the timer */
        run Deleter(); run Silence(); run Agent(SOURCE); run Agent(TARGET); run Conductor(); run Conductor()
    }
    atomic { timeout -> over = true;
        well = (NO_ORDER_OUT || SOURCE_OWES) && ((verdict == 0 && KEPT) || (verdict == confirm && CONFIRMED)
            || (verdict == revert && REVERTED) || (verdict == delete && DELETED)) }
}
