//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* All programs in one object; user space loads those that it needs, each alone. */
#include "packets.h"
#include "events.h"
#include "xdp.h"
#include "generate.h"

/*
 * Sends what the slots of this CPU hold. Run by user space on one CPU after
 * another, perhaps in the middle of a hook: a busy slot is left alone, and its
 * bit set in the result.
 */
SEC("raw_tp")
int flush(void *ctx)
{
	__u32 i = bpf_get_smp_processor_id() * LEVELS;
	int busy = 0;

	for (int level = 0; level < LEVELS; level++, i++) {
		struct slot *s = bpf_map_lookup_elem(&slots, &i);

		if (!s)
			return busy;
		if (__sync_lock_test_and_set(&s->busy, 1)) {
			busy |= 1 << level;
			continue;
		}
		send(s);
		give(s);
	}
	return busy;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Types that the Go test compares, kept in the object's type information. */
const struct tcb_header *layout_header __attribute__((unused));
const struct tcb_segment *layout_segment __attribute__((unused));
const struct tcb_sample *layout_sample __attribute__((unused));
const struct tcb_incident *layout_incident __attribute__((unused));
const enum tcb_kind *layout_kind __attribute__((unused));
const enum tcb_hook *layout_hook __attribute__((unused));
const enum tcb_present *layout_present __attribute__((unused));
