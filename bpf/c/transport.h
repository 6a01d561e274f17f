/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How records leave the kernel: a hook writes its record into a slot of its
 * CPU; a full slot goes into the ring with one bpf_ringbuf_output; user space
 * has the slots of quiet CPUs sent by the program flush.
 *
 * Each CPU has LEVELS slots. A hook that interrupts another one, or runs while
 * a preempted task is inside one, finds the first slot busy and gathers in the
 * next. Only when all are busy is an event counted in over and lost. A
 * hook that interrupts its own program is told by a second one: see TRACE.
 */
#ifndef TCBEE_TRANSPORT_H
#define TCBEE_TRANSPORT_H

#include "kernel.h"
#include "../event/event.h"

#define LEVELS     4
#define SLOT_DATA  (32 * 1024)
#define RECORD_MAX sizeof(struct tcb_sample)
#define SLOT_FULL  (SLOT_DATA - RECORD_MAX)

/* What is kept for TRACE ends where the first cache line of a slot does. */
#define OWNED  2 /* hooks of TRACE_OWNED */
#define TRACED (24 - OWNED)

#define LEFT 1024 /* sockets that a CPU remembers to be beyond their rate, a power of 2 */

/* What became of the events of one hook: counted by who owns the slot, in one cache line. */
struct tally {
	__u64 seen;
	__u64 made;     /* records written into data */
	__u64 filtered; /* but for the limited */
	__u64 limited;  /* samples that the limit left out */
};

/* The same for events that had no slot: in the first slot of a CPU, counted by whoever, atomically. */
struct apart {
	__u64 over; /* none was free */
	__u64 filtered;
	__u64 limited;
	__u64 again; /* told by the second program */
};

/*
 * One slot; user space maps the array and reads all words but writes none.
 * Whoever has busy owns the rest. batch must lie directly before data.
 */
struct slot {
	__u32 busy;
	__u32 len;   /* bytes gathered in data */
	__u64 first; /* time of the first record gathered, 0: none */
	__u64 last;  /* time of the last one */
	__u64 due;   /* first slot of a CPU: see crowded() */
	__u64 net;   /* first slot of a CPU: see in_netns() */
	__u8 inside[TRACED]; /* first slot of a CPU: see TRACE */
	__u8 begun[OWNED];   /* first slot of a CPU: see TRACE_OWNED */
	struct tally tally[TCB_HOOKS];
	struct apart apart[TCB_HOOKS];
	__u64 sent[TCB_HOOKS]; /* made when data was last emptied */
	__u64 dropped[TCB_HOOKS];
	__u64 left[LEFT]; /* first slot of a CPU: see left_here() */
	__u64 budget; /* first slot of a CPU: see over_budget() */
	struct tcb_batch batch;
	__u8 data[SLOT_DATA];
};

_Static_assert(sizeof(struct slot) % 64 == 0, "slots share cache lines");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LEVELS); /* CPUs * LEVELS, set at load */
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct slot);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20); /* set at load */
} ring SEC(".maps");

/* What user space tells the programs while they run. */
struct control {
	__u32 call; /* tell user space, once, when the ring fills up */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct control);
} controls SEC(".maps");

/*
 * Set once all hooks are attached. What happens before is no part of the
 * recording: a hook would tell of it that others, not attached yet, have missed,
 * or whose second program (see TRACE) is not there yet.
 */
volatile __u32 recording;

const volatile __u64 cfg_wake = 1 << 18; /* bytes in the ring of which user space is told */

/* Lets go of a slot: all that was written before is seen before. */
static __always_inline void give(struct slot *s)
{
	barrier();
#ifdef __TARGET_ARCH_arm64
	__sync_lock_test_and_set(&s->busy, 0);
#else
	WRITE_ONCE(s->busy, 0);
#endif
}

/*
 * Sends what the slot has gathered; the caller owns it. The slot is empty
 * afterwards. A global function: verified once, not at each call.
 */
__noinline int send(struct slot *s)
{
	__u32 zero = 0, len, n = 0;
	struct tcb_batch *b;
	__u64 flags = BPF_RB_NO_WAKEUP;
	struct control *c;
	long err;

	if (!s)
		return 0;
	b = &s->batch;
	len = s->len;
	if (len > SLOT_DATA || (!len && !b->lost_first))
		return 0;
	for (int i = 0; i < TCB_HOOKS; i++)
		n += s->tally[i].made - s->sent[i];
	b->size = len;
	b->cpu = bpf_get_smp_processor_id();
	b->count = n;
	c = bpf_map_lookup_elem(&controls, &zero);
	if (c && READ_ONCE(c->call) && bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA) + len >= cfg_wake) {
		WRITE_ONCE(c->call, 0);
		flags = BPF_RB_FORCE_WAKEUP;
	}

	err = bpf_ringbuf_output(&ring, b, sizeof(*b) + len, flags);
	if (err) {
		if (!b->lost_first)
			b->lost_first = s->first;
		b->lost_last = s->last;
		for (int i = 0; i < TCB_HOOKS; i++) {
			__u64 d = s->tally[i].made - s->sent[i];

			b->lost[i] += d;
			s->dropped[i] += d;
		}
	} else if (b->lost_first) {
		b->lost_first = 0;
		b->lost_last = 0;
		for (int i = 0; i < TCB_HOOKS; i++)
			b->lost[i] = 0;
	}
	for (int i = 0; i < TCB_HOOKS; i++)
		s->sent[i] = s->tally[i].made;
	s->first = 0;
	s->len = 0;
	return 0;
}

/*
 * The first slot of this CPU, which has what is kept for all of them too: looked
 * up once by each program. NULL as long as nothing is recorded.
 */
static __always_inline struct slot *first_slot(void)
{
	__u32 i = bpf_get_smp_processor_id() * LEVELS;

	if (unlikely(!recording))
		return NULL;
	return bpf_map_lookup_elem(&slots, &i);
}

/* Where an event happens, as far as its socket tells. */
enum place {
	ANYWHERE,
	IN_TASK, /* which holds the socket */
	IN_BH,	 /* nobody holds it: bottom halves run, or are off */
};

/* What the first program of a CPU has said of itself to the second. */
#define BEGUN_OF(hook) ((hook) == TCB_HOOK_TRANSMIT)
enum { NEVER, BEGUN, TAKEN_BACK };

static __always_inline enum place place_of(struct sock *sk)
{
	if (FIELD_EXISTS(((struct task_struct *)0)->softirq_disable_cnt))
		return ANYWHERE; /* bottom halves are preempted */
	return sk->sk_lock.owned ? IN_TASK : IN_BH;
}

/* The hook's program begins, unless it interrupts itself: then the kernel leaves it out. */
static __always_inline void enter(struct slot *first, __u32 hook, enum place place)
{
	WRITE_ONCE(first->inside[hook], 1);
	if (place != ANYWHERE)
		WRITE_ONCE(first->begun[BEGUN_OF(hook)], place == IN_BH ? BEGUN : TAKEN_BACK);
	barrier();
}

static __always_inline void leave(struct slot *first, __u32 hook)
{
	barrier();
	WRITE_ONCE(first->inside[hook], 0);
}

/* Tells whether the kernel has left out the hook's program for this event, and counts it. */
static __always_inline int left_out(struct slot *first, __u32 hook, enum place place)
{
	__u8 begun;

	begun = place == IN_BH ? READ_ONCE(first->begun[BEGUN_OF(hook)]) : NEVER;
	if (likely(begun == BEGUN)) {
		WRITE_ONCE(first->begun[BEGUN_OF(hook)], TAKEN_BACK);
		return 0;
	}
	if (begun == NEVER && likely(!READ_ONCE(first->inside[hook])))
		return 0;
	first->apart[hook].again++; /* of one at a time: this program, too, does not interrupt itself */
	return 1;
}

/*
 * Begins what is done at a tracepoint or function. The kernel does not run a
 * program while the same one runs on that CPU, and counts that
 * (recursion_misses): a segment that is received while a task is inside would
 * be lost. So there are two. The first is attached such that it runs first;
 * the second has nothing to do unless the first is being interrupted.
 */
#define TRACE(section, name, hook) TRACE_AT(section, name, hook, ANYWHERE)

/*
 * The same for events of a locked socket, which tell more exactly whether the
 * first has been left out. The kernel leaves it out from a little before it says
 * that it is inside until a little after, and in that moment a bottom half may
 * begin that receives dozens of segments. But bottom halves do not interrupt one
 * another: there the first says that it has begun, and the second, finding that,
 * takes it back. Where the second was left out for that very reason, because it is
 * being interrupted, what the first said remains: a task's next event takes it back.
 */
#define TRACE_OWNED(section, name, hook) TRACE_AT(section, name, hook, place_of((struct sock *)ctx[0]))

#define TRACE_AT(section, name, hook, place)                                                                           \
	static __always_inline int name##_event(__u64 *ctx, struct slot *first);                                       \
	SEC(section)                                                                                                   \
	int name(__u64 *ctx)                                                                                           \
	{                                                                                                              \
		struct slot *first = first_slot();                                                                     \
                                                                                                                       \
		if (!first)                                                                                            \
			return 0;                                                                                      \
		enter(first, hook, place);                                                                             \
		name##_event(ctx, first);                                                                              \
		leave(first, hook);                                                                                    \
		return 0;                                                                                              \
	}                                                                                                              \
	SEC(section)                                                                                                   \
	int name##_again(__u64 *ctx)                                                                                   \
	{                                                                                                              \
		struct slot *first = first_slot();                                                                     \
                                                                                                                       \
		return first && left_out(first, hook, place) ? name##_event(ctx, first) : 0;                           \
	}                                                                                                              \
	static __always_inline int name##_event(__u64 *ctx, struct slot *first)

/*
 * Returns a slot that the caller owns until give(), NULL if there is none; the
 * event is counted in either case. The time of an event is read after take, so
 * that user space, having seen no busy slot, knows that none will be older.
 */
static __always_inline struct slot *take(struct slot *first, __u32 hook)
{
	struct slot *s = first;

	if (unlikely(__sync_lock_test_and_set(&s->busy, 1))) {
		__u32 i = bpf_get_smp_processor_id() * LEVELS;

		for (int level = 1; level < LEVELS; level++) {
			i++;
			s = bpf_map_lookup_elem(&slots, &i);
			if (!s)
				return NULL;
			if (!__sync_lock_test_and_set(&s->busy, 1))
				goto taken;
		}
		__sync_fetch_and_add(&first->apart[hook].over, 1);
		return NULL;
	}
taken:
	s->tally[hook].seen++;
	return s;
}

/* Counts an event that would have had the slot that take did not give. */
static __always_inline void missed_also(struct slot *first, __u32 hook)
{
	__sync_fetch_and_add(&first->apart[hook].over, 1);
}

/* Counts an event that is filtered and needs no slot for that. */
static __always_inline void pass(struct slot *first, __u32 hook)
{
	__sync_fetch_and_add(&first->apart[hook].filtered, 1);
}

/* Returns room for one record of any kind in a slot that the caller owns. */
static __always_inline void *room(struct slot *s)
{
	__u32 len = s->len;

	if (unlikely(len > SLOT_FULL)) {
		send(s);
		len = 0;
	}
	/* A register of its own: what was checked is what is added. */
	asm volatile("" : "+r"(len));
	if (len > SLOT_FULL)
		return NULL;
	return s->data + len;
}

/* The record in the last room is size bytes long and stays. */
static __always_inline void keep(struct slot *s, __u32 hook, __u32 size, __u64 time)
{
	if (!s->first)
		s->first = time;
	s->last = time;
	s->tally[hook].made++;
	barrier();
	s->len += size;
}

static __always_inline struct slot *skip(struct slot *s, __u32 hook)
{
	s->tally[hook].filtered++;
	give(s);
	return NULL;
}

#endif
