/* An evacuation, a proof in place of a silent host's word, and that host's return, for the model checker Spin.
 *
 * One conductor, the old host, a new one. Besides up to MISHAPS of these, at any point: the old host's power is cut, for
 * a while or for good; its link is cut, with the guest running on; its agent restarts alone; its keeper dies; a step at
 * the new host fails, or its limit passes; the evacuation is cancelled. A human's word may be old when it arrives. Orders
 * wait in the old host's queue, so they come late. The new host stays up: handover.pml has one that does not.
 *
 * Time: a lease may run out at any moment. What the conductor counts by its own clock is later than that, by the
 * margin: the keeper has looked once since.
 *
 * To be proved: never two runners; the old copy goes last; every run ends, with the guest running where the journal
 * says, or with the old host silent for good.
 *
 * Each guard can be taken out by a switch (spin -DNO_WELCOME ...); README.md tells what happens then.
 */

#ifndef MISHAPS
#define MISHAPS 2
#endif
#if MISHAPS > 2
#define MESSAGES 14     /* orders that one run may draw; an assertion says when it is too small */
#else
#define MESSAGES 10
#endif
#define LEASES 2        /* the last one does not run out */
#ifdef NO_LEASES
#define KEEPER false
#else
#define KEEPER true     /* leases are opt-in */
#endif

/* The rows of EVACUATE that the promises hang on, then the undo of two of them, then a start by the user, or by the
 * conductor when a host is back. Left out: claim, prepare and settle_claims, and undefine. */
mtype = { fence_source, define_guest, start_guest, remove_stale };
mtype = { restart, revoke };
mtype = { set_power };
mtype = { done, failed, not_done, ran, never_ran };
mtype = { on, off, gone };                              /* power, and the link */

#define OLD 0
#define NEW 1
#define HOST_OF(s) ((s == define_guest || s == start_guest || s == revoke) -> NEW : OLD)

/* ---- What is under way. An order's number is its place here. ---- */
typedef Order { mtype step; byte epoch }
Order sent[MESSAGES];
byte posted;

typedef Report { byte number; mtype answer }
Report report[2];
typedef Welcome { byte id; byte epoch; byte number; byte lease }
Welcome welcome;                /* to the old host: how the server stands, and the lease with it */
typedef Lease { byte id; byte number }
Lease lease;                    /* a renewal */

/* ---- What each host keeps on its own disk ---- */
typedef Ledger {
    byte epoch; byte number;                    /* nothing up to here is obeyed */
    byte taken; mtype answer;                   /* the newest order obeyed, and what became of it */
    bool sealed; byte grant_boot; bool released;
}
Ledger ledger[2];
bool copy = true;               /* the old host's, stale once the server is made anew elsewhere */

/* ---- What each host forgets ---- */
typedef Host { bool paused; bool running; byte doing; byte line }
Host host[2];
mtype power = on, link = on;    /* the old host's; the new one has both all the time */
byte boot = 1;
bool admitted = true, keeper = KEEPER;
bool deadline = KEEPER;          /* the agent knows when its lease ends */
byte id = 1;                    /* of this admission */
byte held = KEEPER;                 /* the lease that the keeper keeps; 0: none in this boot */

/* ---- The clock ---- */
byte ran_out;                   /* leases up to this one are over */
bool looked;                    /* the keeper has looked since */

/* ---- The journal: all that the conductor has ---- */
byte epoch = 1;
bit owner = OLD;
mtype awaiting;                 /* the order that is out; 0: none */
bool evacuated, wanted = true;  /* wanted: the guest is to run */
byte to_old;                    /* the newest order to the old host */
byte debt;                      /* the order for what it owes; 0: nothing. Not yet ordered: OWED */
#define OWED 255
byte heard_id = 1, heard_boot = 1;
byte given = KEEPER;               /* the newest lease */
bool kept = KEEPER;              /* the host said that a keeper has a lease, when it was heard last */
bool proof;
byte seen_off;                  /* by a human, who has not yet said so: this boot is over */

byte mishaps;
bool over, well;

ltl one_runner { [] !(host[OLD].running && host[NEW].running) }
ltl stale_goes_last { [] (copy || (owner == NEW && ledger[NEW].released)) }
ltl ends { <> over }
ltl ends_well { [] (over -> well) }

#define MISHAP (mishaps < MISHAPS)
#define UP (power == on)
#define REACHED (power == on && link == on)

/* ============================================ the hosts ============================================ */

#define STEP sent[host[h].doing - 1].step
#define AT(s, l) (host[h].doing && host[h].line == l && STEP == s)
#define EXPIRED (held > 0 && held <= ran_out)
#ifdef NO_WELCOME
#define MAY_RUN (!(deadline && EXPIRED))
#else
#define MAY_RUN (admitted && !(deadline && EXPIRED))
#endif
#define MAY_OBEY (REACHED && MAY_RUN)
#ifdef NO_CHECK_ON_RENEW
#define LOOKS_FIRST true
#else
#define LOOKS_FIRST (!(deadline && EXPIRED))
#endif

inline rest(h) { host[h].doing = 0; host[h].line = 0 }
inline tell(h) { report[h].number = ledger[h].taken; report[h].answer = ledger[h].answer }
inline finish(h, a) {
    ledger[h].answer = a; rest(h);
    if
    :: h == NEW || link == on -> tell(h)
    :: else
    fi
}
inline end_guest(h) { host[h].running = false; host[h].paused = false }

#define TAKE(h, i) \
    :: atomic { (posted > i && HOST_OF(sent[i].step) == h && (h == NEW || MAY_OBEY) \
                 && sent[i].epoch >= ledger[h].epoch && i + 1 > ledger[h].number) -> \
        ledger[h].epoch = sent[i].epoch; ledger[h].number = i + 1; ledger[h].taken = i + 1; ledger[h].answer = 0; \
        host[h].line = 0; host[h].doing = i + 1 }
#define TAKE_ANY(h) TAKE(h, 1) TAKE(h, 2) TAKE(h, 3) TAKE(h, 4) TAKE(h, 5) TAKE(h, 6) TAKE(h, 7) TAKE(h, 8)

/* The new host: its rows in as few lines as a revoke may come between. */
#define h NEW
proctype NewHost() {
end: do
    TAKE_ANY(NEW)
#if MISHAPS > 2
    TAKE(NEW, 0) TAKE(NEW, 9) TAKE(NEW, 10) TAKE(NEW, 11) TAKE(NEW, 12) TAKE(NEW, 13)
#endif
    :: atomic { AT(define_guest, 0) -> finish(NEW, done) }
    :: atomic { (AT(define_guest, 0) || AT(start_guest, 0)) && MISHAP -> mishaps++; finish(NEW, failed) }
    :: atomic { AT(start_guest, 0) -> ledger[NEW].released = true; host[NEW].line = 1 }
    :: atomic { AT(start_guest, 1) -> host[NEW].running = true; finish(NEW, done) }
    :: atomic { AT(revoke, 0) -> end_guest(NEW);
        if
        :: ledger[NEW].released -> finish(NEW, ran)
        :: else -> finish(NEW, never_ran)
        fi }
    od
}
#undef h
#define h OLD

/* A grant is bound to a boot, and to what was seen meanwhile: a newer epoch or number takes it away. */
#define OLD_EPOCH (sent[host[OLD].doing - 1].epoch < ledger[OLD].epoch)
#ifdef NO_OVERTAKEN
#define OVERTAKEN OLD_EPOCH
#else
#define OVERTAKEN (OLD_EPOCH || host[OLD].doing < ledger[OLD].number)
#endif
#ifdef NO_LOOK_AT_LEASE
#define LEASED true
#else
#define LEASED MAY_RUN
#endif
#define HOLDS (ledger[OLD].grant_boot == boot && !ledger[OLD].sealed && host[OLD].paused)
#define STARTING(l) (AT(restart, l) || AT(set_power, l))

proctype OldHost() {
end: do
    TAKE(OLD, 0) TAKE_ANY(OLD) TAKE(OLD, 9)
#if MISHAPS > 2
    TAKE(OLD, 10) TAKE(OLD, 11) TAKE(OLD, 12) TAKE(OLD, 13)
#endif
    :: atomic { AT(fence_source, 0) -> ledger[OLD].sealed = true; end_guest(OLD); finish(OLD, done) }
    :: atomic { AT(remove_stale, 0) -> ledger[OLD].sealed = true; end_guest(OLD); copy = false; finish(OLD, done) }

    /* restart, set_power: grant, which lifts the seal, and make it paused; record the release; let it run. */
    :: atomic { STARTING(0) ->
        if
        :: OVERTAKEN || !LEASED -> finish(OLD, failed)
        :: else -> ledger[OLD].sealed = false; ledger[OLD].grant_boot = boot;
            if
            :: host[OLD].running -> finish(OLD, done)
            :: else -> host[OLD].paused = true; host[OLD].line = 1
            fi
        fi }
    :: atomic { STARTING(1) ->
        if
        :: OVERTAKEN || !HOLDS || !LEASED -> finish(OLD, failed)
        :: else -> host[OLD].line = 2
        fi }
    :: atomic { STARTING(2) ->
        if
        :: host[OLD].paused -> host[OLD].paused = false; host[OLD].running = true; finish(OLD, done)
        :: else -> finish(OLD, failed)
        fi }

    :: atomic { (UP && !host[OLD].doing && ledger[OLD].taken > 0 && ledger[OLD].answer == 0) ->
        finish(OLD, not_done) }                         /* it was cut short */
    :: atomic { (REACHED && ledger[OLD].answer != 0
                 && (report[OLD].number != ledger[OLD].taken || report[OLD].answer != ledger[OLD].answer)) ->
        tell(OLD) }

    /* A host that was told of a newer epoch or number obeys nothing up to there. */
    :: atomic { REACHED && !admitted && welcome.id == id && LOOKS_FIRST ->
        if
        :: welcome.lease > 0 && welcome.lease <= ran_out -> id++               /* too late: ask again */
        :: else -> admitted = true;
            ledger[OLD].epoch = (welcome.epoch > ledger[OLD].epoch -> welcome.epoch : ledger[OLD].epoch);
#ifndef NO_NUMBER
            ledger[OLD].number = (welcome.number > ledger[OLD].number -> welcome.number : ledger[OLD].number);
#endif
            if
            :: welcome.lease > held -> held = welcome.lease; deadline = true
            :: else
            fi
        fi }
    :: atomic { (REACHED && admitted && lease.id == id && lease.number > held && lease.number > ran_out
                 && LOOKS_FIRST) -> held = lease.number; deadline = true }
    /* The lease has run out: no grant counts, and no order, until a conductor has said how the server stands. */
    :: atomic { UP && deadline && EXPIRED -> deadline = false; admitted = false; id++;
#ifndef NO_SUSPEND
        ledger[OLD].grant_boot = 0
#endif
        }
    od
}

proctype Keeper() {
end: do
    :: atomic { UP && keeper && EXPIRED && (!looked || host[OLD].running || host[OLD].paused) ->
        end_guest(OLD); looked = true }
    od
}

/* Each start of an agent asks anew. */
#ifdef NO_DEADLINE
#define READ_DEADLINE false
#else
#define READ_DEADLINE (held > 0)
#endif
inline start_agent() { rest(OLD); admitted = false; id++; deadline = READ_DEADLINE }

/* Whether its lease counts, by what the host said last. */
#ifdef NO_KEPT
#define COUNTED true
#else
#define COUNTED (keeper && held > 0)
#endif

proctype Fate() {
end: do
    :: atomic { UP && MISHAP -> mishaps++; power = off; end_guest(OLD); rest(OLD); admitted = false }
    :: atomic { power == off -> power = on; boot++; held = 0; keeper = KEEPER; start_agent() }
    :: atomic { power == off -> power = gone }
    :: atomic { UP && MISHAP -> mishaps++; start_agent() }
    :: atomic { link == on && MISHAP -> mishaps++; link = off }
    :: atomic { link == off -> link = on }
    :: atomic { link == off -> link = gone }
    /* The host has said so before it is cut off. Whose keeper dies in that very moment is not covered. */
    :: atomic { REACHED && keeper && MISHAP -> mishaps++; keeper = false; kept = COUNTED; proof = false }
    :: atomic { ran_out < given && given < LEASES -> ran_out = given; looked = false }
    od
}
#undef h

/* ========================================== the conductor ========================================== */

inline put_order(what) {
    assert(posted < MESSAGES);
    sent[posted].step = what; sent[posted].epoch = epoch; posted++;
    awaiting = what; to_old = (HOST_OF(what) == OLD -> posted : to_old)
}

#ifdef NO_LEASE_WITH_WELCOME
#define WELCOME_LEASE 0
#else
#define WELCOME_LEASE (keeper -> given : 0)
#endif

/* A host that speaks voids a proof. */
#ifdef NO_VOID
#define VOID proof
#else
#define VOID false
#endif

#ifdef NO_MARGIN
#define LEASE_OVER true
#else
#define LEASE_OVER (ran_out == given && (looked || !UP || !keeper || held == 0))
#endif

#ifdef NO_VOID
#define SAME_BOOT true
#else
#define SAME_BOOT (seen_off == heard_boot)
#endif

#define ANSWERED(s, a) \
    (awaiting == s && report[HOST_OF(s)].number == posted && report[HOST_OF(s)].answer == a)
#define NOT_DONE (awaiting != 0 && report[HOST_OF(awaiting)].number == posted \
    && report[HOST_OF(awaiting)].answer == not_done)
/* Refused as stale: the host knows a number that is as great, and never took this one. */
#define STALE(n) (REACHED && admitted && ledger[OLD].number >= n && ledger[OLD].taken != n)

inline turn_back() { epoch++; put_order(restart) }
inline hand_over() { owner = NEW; epoch++ }
inline take_back() { owner = OLD; epoch++ }

#ifdef NO_CUT_SHORT
#define INTERRUPTED (ledger[OLD].grant_boot != boot || ledger[OLD].sealed)
#else
#define INTERRUPTED (ledger[OLD].grant_boot != boot || ledger[OLD].sealed || ledger[OLD].answer == not_done)
#endif

inline start_again() {
    put_order(set_power);
#ifdef NO_WILL
    wanted = false
#endif
}

#define AWAY (power == gone || link == gone)
#define AT_HOME (owner == OLD && (host[OLD].running || AWAY))
#define ELSEWHERE (owner == NEW && host[NEW].running && (AWAY || !copy))

active proctype Conductor() {
    atomic {
        ledger[OLD].epoch = 1; ledger[OLD].grant_boot = 1; ledger[OLD].released = true; host[OLD].running = true;
        welcome.id = 1;
        run OldHost(); run NewHost(); run Keeper(); run Fate()
    }
    do
    /* A user starts a guest whose host is silent, and then it is evacuated. */
    :: atomic { awaiting == 0 && !evacuated && posted == 0 -> put_order(set_power) }
    :: atomic { (awaiting == 0 || awaiting == set_power) && !evacuated -> evacuated = true;
#ifdef NO_FENCE
        put_order(define_guest)
#else
        put_order(fence_source)
#endif
        }
    :: atomic { ANSWERED(fence_source, done) -> put_order(define_guest) }
    :: atomic { awaiting == fence_source && proof -> proof = false; put_order(define_guest) }
    :: atomic { ANSWERED(define_guest, done) -> hand_over(); put_order(start_guest) }
    :: atomic { ANSWERED(start_guest, done) -> put_order(remove_stale) }
    :: atomic { ANSWERED(remove_stale, done) -> awaiting = 0 }
    :: atomic { awaiting == remove_stale && !REACHED -> debt = OWED; awaiting = 0 }

    :: atomic { ANSWERED(define_guest, failed) -> turn_back() }
    :: atomic { (awaiting == fence_source || awaiting == define_guest) && MISHAP -> mishaps++; turn_back() }
    :: atomic { ANSWERED(start_guest, failed) -> epoch++; put_order(revoke) }
    :: atomic { awaiting == start_guest && MISHAP -> mishaps++; epoch++; put_order(revoke) }
    :: atomic { ANSWERED(revoke, never_ran) -> take_back(); turn_back() }
    :: atomic { ANSWERED(revoke, ran) -> put_order(start_guest) }
    /* A host that comes back is told who runs the server, so its restart is not waited for. */
    :: atomic { (awaiting == restart || awaiting == set_power) && !REACHED -> awaiting = 0 }
    :: atomic { (ANSWERED(restart, failed) || ANSWERED(set_power, failed)) -> awaiting = 0 }
    :: atomic { (ANSWERED(restart, done) || ANSWERED(set_power, done)) -> awaiting = 0; wanted = true }
    :: atomic { (NOT_DONE || (awaiting != 0 && HOST_OF(awaiting) == OLD && STALE(posted))) -> put_order(awaiting) }

    /* What is owed, by a host that speaks. */
    :: atomic { awaiting == 0 && REACHED && (debt == OWED || (debt != 0 && (STALE(debt)
                || (report[OLD].number == debt && report[OLD].answer == not_done)))) ->
        put_order(remove_stale); debt = posted; awaiting = 0 }
    :: atomic { debt != 0 && report[OLD].number == debt && report[OLD].answer == done -> debt = 0 }

    /* Heartbeats: what is answered to them may be late. */
    :: atomic { REACHED && !admitted && heard_id != id -> heard_id = id; heard_boot = boot; kept = COUNTED; proof = VOID;
        given = (WELCOME_LEASE && given < LEASES -> given + 1 : given);
        welcome.id = id; welcome.epoch = epoch; welcome.number = posted; welcome.lease = WELCOME_LEASE }
    :: atomic { (REACHED && admitted && keeper && !(deadline && EXPIRED) && held < LEASES
                 && !(lease.id == id && lease.number > held)) ->
        given = (given < LEASES -> given + 1 : given); kept = COUNTED; proof = VOID;
        lease.id = id; lease.number = given }
    :: atomic { REACHED && admitted && kept != COUNTED -> kept = COUNTED; proof = VOID }
    :: atomic { (REACHED && admitted && awaiting == 0 && owner == OLD && wanted && !host[OLD].running && INTERRUPTED
                 && ledger[OLD].number >= to_old) -> proof = VOID; start_again() }

    /* Proofs: a human's, who sees a host off and says it later, and a lease's. */
    :: atomic { !UP && !proof && seen_off != boot -> seen_off = boot }
    :: atomic { seen_off > 0 && SAME_BOOT && !proof -> proof = true; seen_off = 0 }
    :: atomic { awaiting == fence_source && kept && LEASE_OVER && !proof -> proof = true }

    :: atomic { timeout -> over = true;
        well = ((awaiting == 0 && (AT_HOME || ELSEWHERE)) || (awaiting == fence_source && AWAY)) }; break
    od
}
