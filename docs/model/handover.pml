/* The hand-over of a server from one host to another, for the model checker Spin.
 *
 * One conductor, two hosts with an agent each, two attempts at the same target. Nobody sees another's variables: a
 * host decides from its own ledger and the messages that reached it, the conductor from its journal and the
 * reports. Messages come late, twice, out of order or never. Besides, up to MISHAPS of these happen, at any point: a
 * host's power is cut, for a while or for good; an agent restarts alone; a guest dies; a step fails; a user cancels
 * or a limit passes without an answer. A conductor may crash at any time, and a human's word may be old when it
 * arrives.
 *
 * To be proved: never two runners; the runner's disk has every write that the guest was told is durable, and at any
 * time some host's disk has; every run ends, either with the guest running where the journal says, or with one host
 * off whose word is missing.
 *
 * Each guard can be taken out by a switch (spin -DNO_EPOCH ...); README.md tells what happens then.
 */

#ifndef MISHAPS
#define MISHAPS 3
#endif
#ifndef ATTEMPTS
#define ATTEMPTS 2
#endif
#if MISHAPS > 3
#define MESSAGES 20     /* orders that one run may draw; an assertion says when it is too small */
#else
#define MESSAGES 16
#endif

/* The rows of COLD that the promises hang on, then the undo of three of them. Left out: claim, open_channel,
 * verify_disks and define_guest, which change neither who may run nor whether a disk is whole. hand_over and take_back
 * are the conductor's own transactions. */
mtype = { prepare, stop_guest, copy_disks, start_guest };
mtype = { discard, unseal, revoke };
mtype = { done, failed, not_done, ran, never_ran };     /* answers; the last two are those to revoke */
mtype = { on, off, gone };                              /* a host's power */

#define SOURCE 0
#define TARGET 1
#define OTHER(h) (1 - (h))
#define HOST_OF(s) ((s == stop_guest || s == copy_disks || s == unseal) -> SOURCE : TARGET)

/* ---- What is under way. An order that was sent stays: it may be taken now, late, twice, or never. ---- */
typedef Order { mtype step; byte epoch; byte number; byte handed_over }
Order sent[MESSAGES];
byte posted;

typedef Report { byte number; mtype answer }
Report report[2];               /* from each host: what became of this order */
typedef Welcome { byte boot; byte epoch }
byte asked[2];                  /* from each host: "this is my boot, may I take orders?" */
Welcome welcome[2];             /* the answer to it, for this boot only: the server's epoch */
byte proof;                     /* from a human: this boot of the target is over; 0: nothing was said */

/* ---- What each host keeps on its own disk ---- */
typedef Ledger {
    byte epoch; byte number; mtype answer;      /* the newest order obeyed, and what became of it */
    bool sealed;                                /* not to run here until an order brings a newer grant */
    byte grant_epoch; byte grant_boot;          /* may run at this epoch, in this boot of this host */
    byte released;                              /* the newest epoch at which the guest was let run here */
}
Ledger ledger[2];

/* ---- What a power cut takes away ---- */
typedef Host {
    mtype power; byte boot; bool welcomed; bool running;
    byte doing; byte line; mtype outcome;       /* the order in work (0: none), the line it is at, its result */
}
Host host[2];

/* ---- The journal: all that the conductor has ---- */
byte epoch = 1, number, handed_over, attempt = 1;
bit owner = SOURCE;
mtype awaiting;                 /* the order that is out; 0: the migration has ended */

/* ---- What nobody can see: does this host's disk hold every write that the guest was told is durable? ---- */
bool whole[2] = true;
byte mishaps;
bool over, well;

#define RUNS(h) (host[h].running)
ltl one_runner { [] !(RUNS(SOURCE) && RUNS(TARGET)) }
ltl whole_copy { [] ((whole[SOURCE] || whole[TARGET])
                     && (RUNS(SOURCE) -> whole[SOURCE]) && (RUNS(TARGET) -> whole[TARGET])) }
ltl ends { <> over }
ltl ends_well { [] (over -> well) }

/* ============================================ the hosts ============================================ */

#ifdef NO_EPOCH
#define EPOCH_OBEYED(o) true
#else
#define EPOCH_OBEYED(o) (o.epoch >= ledger[h].epoch)
#endif

/* An equal number is answered from the ledger. That answer is under way already, so it is no step of the model. */
#ifdef NO_ORDER
#define NUMBER_OBEYED(o) (o.number != ledger[h].number)
#else
#ifdef NO_LEDGER
#define NUMBER_OBEYED(o) (o.number >= ledger[h].number)
#else
#define NUMBER_OBEYED(o) (o.number > ledger[h].number)
#endif
#endif

#ifdef NO_WELCOME
#define TAKES_ORDERS (host[h].power == on)
#else
#define TAKES_ORDERS (host[h].power == on && host[h].welcomed)
#endif

#ifdef NO_SEAL
#define SEALED false
#else
#define SEALED (ledger[h].sealed)
#endif

#ifdef NO_BOOT
#define GRANTED (ledger[h].grant_epoch > 0)
#else
#define GRANTED (ledger[h].grant_epoch > 0 && ledger[h].grant_boot == host[h].boot)
#endif

#ifdef NO_RELEASED
#define WAS_RELEASED false
#else
#define WAS_RELEASED (ledger[h].released >= IN_WORK.handed_over)
#endif

/* The guest is made paused at line 0; a paused guest does nothing, so no variable tells of it. */
#ifdef NO_PAUSE
#define RESUME  1
#define RELEASE 2
#else
#define RELEASE 1
#define RESUME  2
#endif

/* Whether the guest is to run at the target, or ever ran there, only the target knows. */
#define NEEDS_WORD (awaiting == start_guest || awaiting == revoke)

#define IN_WORK sent[host[h].doing - 1]
#define AT(s, l) (host[h].doing && host[h].outcome == 0 && host[h].line == l && IN_WORK.step == s)
#define MISHAP (mishaps < MISHAPS)

/* Written down before anything is done. One executor: a newer order ends the one in work. */
#define TAKE(i) \
    :: atomic { (posted > i && TAKES_ORDERS && HOST_OF(sent[i].step) == h \
                 && EPOCH_OBEYED(sent[i]) && NUMBER_OBEYED(sent[i])) -> \
        ledger[h].epoch = sent[i].epoch; ledger[h].number = sent[i].number; ledger[h].answer = 0; \
        rest(); host[h].doing = i + 1 }

inline rest() { host[h].doing = 0; host[h].line = 0; host[h].outcome = 0 }

/* A result goes into the ledger and on its way in one transaction. */
inline finish(a) { ledger[h].answer = a; report[h].number = ledger[h].number; report[h].answer = a; rest() }

/* A guest that runs writes: from here the other host's disk is not whole. */
inline run_guest() { host[h].running = true; whole[OTHER(h)] = false }

proctype Agent(byte h) {
end: do
    TAKE(0) TAKE(1) TAKE(2) TAKE(3) TAKE(4) TAKE(5) TAKE(6) TAKE(7) TAKE(8) TAKE(9)
    TAKE(10) TAKE(11) TAKE(12) TAKE(13) TAKE(14) TAKE(15)
#if MISHAPS > 3
    TAKE(16) TAKE(17) TAKE(18) TAKE(19)
#endif

    /* prepare, discard: files that are new and empty, or none. */
    :: atomic { (AT(prepare, 0) || AT(discard, 0)) -> whole[h] = false; host[h].outcome = done }
    :: atomic { AT(prepare, 0) && MISHAP -> mishaps++; host[h].outcome = failed }

    /* copy_disks: what is copied while the guest writes is torn; a target that is off takes nothing. */
    :: atomic { AT(copy_disks, 0) ->
        if
        :: host[TARGET].power == on -> whole[TARGET] = whole[SOURCE] && !RUNS(SOURCE); host[h].outcome = done
        :: host[TARGET].power != on -> host[h].outcome = failed
        :: MISHAP -> mishaps++; whole[TARGET] = false; host[h].outcome = failed
        fi }

    /* stop_guest, revoke: promise, then stop. revoke also says whether the guest was ever let run since hand_over. */
    :: atomic { (AT(stop_guest, 0) || AT(revoke, 0)) -> ledger[h].sealed = true; host[h].line = 1 }
    :: atomic { AT(stop_guest, 1) -> host[h].running = false; host[h].outcome = done }
    :: atomic { AT(revoke, 1) -> host[h].running = false; host[h].outcome = (WAS_RELEASED -> ran : never_ran) }

    /* start_guest, unseal: grant, which lifts the seal; make it paused; record the release; let it run. */
    :: atomic { (AT(start_guest, 0) || AT(unseal, 0)) -> ledger[h].sealed = false; host[h].line = 1;
        ledger[h].grant_epoch = IN_WORK.epoch; ledger[h].grant_boot = host[h].boot }
    :: atomic { (AT(start_guest, 0) || AT(unseal, 0)) && MISHAP -> mishaps++; host[h].outcome = failed }
    :: atomic { (AT(start_guest, RELEASE) || AT(unseal, RELEASE)) ->
        ledger[h].released = IN_WORK.epoch; host[h].line++ }
    :: atomic { (AT(start_guest, RESUME) || AT(unseal, RESUME)) -> run_guest(); host[h].line++ }
    :: atomic { (AT(start_guest, 3) || AT(unseal, 3)) -> host[h].outcome = done }

    :: atomic { host[h].doing && host[h].outcome != 0 -> finish(host[h].outcome) }
    /* An order without a result, after a restart. A probe may find that it was done after all, which saves work;
     * this is the worse case. */
    :: atomic { (host[h].power == on && !host[h].doing && ledger[h].number > 0 && ledger[h].answer == 0) ->
        finish(not_done) }

    /* After a boot the agent asks, and takes no order before it knows the server's epoch. */
    :: atomic { host[h].power == on && asked[h] < host[h].boot -> asked[h] = host[h].boot }
    :: atomic { (host[h].power == on && !host[h].welcomed && welcome[h].boot == host[h].boot) ->
        host[h].welcomed = true;
        ledger[h].epoch = (welcome[h].epoch > ledger[h].epoch -> welcome[h].epoch : ledger[h].epoch) }

    /* What happens without an order: autostart, a hypervisor that restarts a guest that died, a human's hand. Only
     * what the ledger allows can start: a sealed guest is not known to the hypervisor, nor one of another boot. */
    :: atomic { (host[h].power == on && !host[h].doing && !RUNS(h) && GRANTED && !SEALED
                 && ledger[h].released == ledger[h].grant_epoch) -> run_guest() }
    od
}

proctype Fate(byte h) {
end: do
    :: atomic { host[h].power == on && MISHAP -> mishaps++;
        host[h].power = off; host[h].running = false; host[h].welcomed = false; rest() }
    :: atomic { host[h].power == off -> host[h].power = on; host[h].boot++ }
    :: atomic { host[h].power == off -> host[h].power = gone }
    :: atomic { host[h].doing && MISHAP -> mishaps++; rest() }                  /* the agent alone */
    :: atomic { RUNS(h) && MISHAP -> mishaps++; host[h].running = false }       /* the guest alone */
    od
}

/* Reads needs_fence(target) and sees that this host is off. By the time that is said, it may be on again. */
#ifndef NO_HUMAN
active proctype Human() {
end: atomic { NEEDS_WORD && host[TARGET].power != on -> proof = host[TARGET].boot }
}
#endif

/* ========================================== the conductor ========================================== */

/* Each option below is one transaction: it reads the journal, writes it, and puts the next order out. So a crash
 * between two of them loses nothing; what was being published is published again, as the network does anyway. */

inline put_order(what) {
    assert(posted < MESSAGES);
    number++;
    sent[posted].step = what; sent[posted].epoch = epoch; sent[posted].number = number;
    sent[posted].handed_over = handed_over;
    posted++; awaiting = what
}

inline hand_over() { owner = TARGET; epoch++; handed_over = epoch }
inline take_back() { owner = SOURCE; epoch++ }

/* Back, from the row that is out. An undo that may let another host run is ordered at a new epoch. */
inline turn() {
    if
    :: awaiting == prepare -> put_order(discard)
    :: awaiting == stop_guest || awaiting == copy_disks -> epoch++; put_order(unseal)
    :: awaiting == start_guest -> epoch++; put_order(revoke)
    fi
}

inline next_attempt() {
    if
    :: attempt < ATTEMPTS -> attempt++; handed_over = 0; put_order(prepare)
    :: else -> awaiting = 0
    fi
}

/* A report counts only for the order that is out. */
#define ANSWERED(s, a) (awaiting == s && report[HOST_OF(s)].number == number && report[HOST_OF(s)].answer == a)
#define NOT_DONE(h) \
    (awaiting != 0 && HOST_OF(awaiting) == h && report[h].number == number && report[h].answer == not_done)

/* A proof is about one boot: it counts only if no later boot of that host was welcomed. */
#ifdef NO_PROOF
#define PROVED (proof > 0)
#else
#define PROVED (proof > 0 && welcome[TARGET].boot <= proof)
#endif

/* The guest runs where the journal says, unless the power was cut there after it was started; or one host is off
 * whose word is missing. */
#define REBOOTED(h) (host[h].power != on || ledger[h].grant_boot != host[h].boot)
#define ENDED_WELL  (awaiting == 0 && (RUNS(owner) || REBOOTED(owner)))
#define NEEDS_FENCE (awaiting != 0 && host[HOST_OF(awaiting)].power != on)

active proctype Conductor() {
    atomic {
        host[SOURCE].power = on; host[SOURCE].boot = 1; host[SOURCE].welcomed = true; host[SOURCE].running = true;
        host[TARGET].power = on; host[TARGET].boot = 1; host[TARGET].welcomed = true;
        asked[SOURCE] = 1; welcome[SOURCE].boot = 1; asked[TARGET] = 1; welcome[TARGET].boot = 1;
        ledger[SOURCE].epoch = 1; ledger[SOURCE].released = 1;
        ledger[SOURCE].grant_epoch = 1; ledger[SOURCE].grant_boot = 1;
        whole[TARGET] = false;
        put_order(prepare);
        run Agent(SOURCE); run Agent(TARGET); run Fate(SOURCE); run Fate(TARGET)
    }
    do
    :: atomic { ANSWERED(prepare, done) -> put_order(stop_guest) }
    :: atomic { ANSWERED(stop_guest, done) -> put_order(copy_disks) }
    :: atomic { ANSWERED(copy_disks, done) -> hand_over(); put_order(start_guest) }
    :: atomic { ANSWERED(start_guest, done) -> awaiting = 0 }

    :: atomic { (ANSWERED(prepare, failed) || ANSWERED(copy_disks, failed) || ANSWERED(start_guest, failed)) ->
        turn() }
    :: atomic { (MISHAP && (awaiting == prepare || awaiting == stop_guest || awaiting == copy_disks
                 || awaiting == start_guest)) -> mishaps++; turn() }
    :: atomic { ANSWERED(revoke, never_ran) -> take_back(); put_order(unseal) }
    :: atomic { ANSWERED(revoke, ran) -> put_order(start_guest) }              /* never back by itself */
    :: atomic { ANSWERED(unseal, failed) -> put_order(unseal) }
    :: atomic { ANSWERED(unseal, done) -> put_order(discard) }
    :: atomic { ANSWERED(discard, done) -> next_attempt() }
    :: atomic { awaiting == discard -> next_attempt() }                         /* owed: nobody waits for it */
    :: atomic { (NOT_DONE(SOURCE) || NOT_DONE(TARGET)) -> put_order(awaiting) } /* the same step, a new number */

    /* A proof instead of the target's word. Who gives it gives up what the guest may have written there: from here
     * the source's disk is what counts. */
    :: atomic { NEEDS_WORD && PROVED ->
        proof = 0; whole[SOURCE] = true; whole[TARGET] = false; take_back(); put_order(unseal) }

    :: atomic { asked[SOURCE] > welcome[SOURCE].boot ->
        welcome[SOURCE].boot = asked[SOURCE]; welcome[SOURCE].epoch = epoch }
    :: atomic { asked[TARGET] > welcome[TARGET].boot ->
        welcome[TARGET].boot = asked[TARGET]; welcome[TARGET].epoch = epoch }

#ifdef NO_OUTBOX
    /* The order was sent first, and a crash came before the journal was written. */
    :: atomic { ANSWERED(copy_disks, done) && MISHAP -> mishaps++;
        sent[posted].step = start_guest; sent[posted].epoch = epoch + 1; sent[posted].number = number + 1;
        sent[posted].handed_over = epoch + 1; posted++ }
#endif

    /* Nothing can happen any more. */
    :: atomic { timeout -> over = true; well = (ENDED_WELL || NEEDS_FENCE) }; break
    od
}
