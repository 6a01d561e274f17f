/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A load that looks like traffic, for benchmarks: run many times over by
 * BPF_PROG_TEST_RUN, the programs here write the next packet of one of many
 * connections into the test's skb and record it with the code of the hooks.
 */
#ifndef TCBEE_GENERATE_H
#define TCBEE_GENERATE_H

#include "packets.h"

const volatile __u32 cfg_flows = 256;   /* connections on each CPU */

/*
 * 0: write packets only, 1: and parse them and read the clock, 2: and record
 * them. 3 is what this design is compared with: each record goes into the ring
 * by itself, with the default wake-up.
 */
const volatile __u32 cfg_generate = 2;

/* One synthetic connection. Whether the local side sends or receives is by its number. */
struct flow {
	__u32 seq;      /* next byte of the side that sends data */
	__u32 ack;      /* ... of the other side */
	__u32 ts_data;  /* last TSval of the side that sends data */
	__u32 ts_ack;   /* ... of the other side */
	__u32 events;
	__u16 id;
	__u16 window;
};

/* Where the load of a CPU is. */
struct load {
	__u64 count; /* packets made */
	__u32 flow;
	__u32 random;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* CPUs * flows, set at load */
	__type(key, __u32);
	__type(value, struct flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* CPUs, set at load */
	__type(key, __u32);
	__type(value, struct load);
} loads SEC(".maps");

/* The packet that is rewritten: room for all options. */
struct frame {
	struct ethhdr eth;
	struct iphdr ip;
	struct tcphdr tcp;
	__u32 options[10];
} __attribute__((packed));

#define GEN_MSS   1448
#define GEN_PORT  443
#define TS_HEADER bpf_ntohl(0x0101080a) /* NOP NOP timestamps, 10 bytes */

/*
 * The next packet: each visit to a connection is two segments of data and the
 * ACK that answers them. One visit of 64 ends a burst with PSH and a short
 * segment, one of 128 loses and repeats a segment, with a SACK block.
 */
static __always_inline int next_packet(struct __sk_buff *skb, __u64 *cookie, __u64 *seq)
{
	struct frame *f = (void *)(long)skb->data;
	__u32 cpu = bpf_get_smp_processor_id(), i, step, len, local;
	struct load *load = bpf_map_lookup_elem(&loads, &cpu);
	__u32 options = 12, flags = 0x10, now;
	struct flow *fl;
	int to_peer;

	if (!load || (void *)(f + 1) > (void *)(long)skb->data_end)
		return -1;
	step = load->count++ % 3;
	if (!step) {
		load->random = load->random * 1664525 + 1013904223;
		load->flow = ((__u64)load->random * cfg_flows) >> 32;
	}
	i = cpu * cfg_flows + load->flow;
	fl = bpf_map_lookup_elem(&flows, &i);
	if (!fl)
		return -1;
	now = bpf_ktime_get_ns() >> 20; /* a tick of about 1 ms */
	fl->events++;

	/* Even connections send data, odd ones receive it; step 2 goes the other way. */
	to_peer = (load->flow & 1) == (step == 2);
	local = bpf_ntohl(0x0a000000 | cpu << 16 | (load->flow & 0xffff));
	f->eth.h_proto = bpf_ntohs(ETH_P_IP);
	f->ip.ver_ihl = 0x45;
	f->ip.protocol = IPPROTO_TCP;
	f->ip.frag_off = bpf_ntohs(0x4000);
	f->ip.ttl = to_peer ? 64 : 57;
	f->ip.id = bpf_ntohs(fl->id);
	fl->id++;
	if (to_peer) {
		f->ip.saddr = local;
		f->ip.daddr = bpf_ntohl(0xc0a80001 + (load->flow >> 6));
		f->tcp.source = bpf_ntohs(32768 + (load->flow & 0x3fff));
		f->tcp.dest = bpf_ntohs(GEN_PORT);
	} else {
		f->ip.daddr = local;
		f->ip.saddr = bpf_ntohl(0xc0a80001 + (load->flow >> 6));
		f->tcp.dest = bpf_ntohs(32768 + (load->flow & 0x3fff));
		f->tcp.source = bpf_ntohs(GEN_PORT);
	}
	if (step < 2) {
		len = GEN_MSS;
		if ((load->random >> 8) % 64 == 0 && step == 1) {
			len = 100 + (load->random >> 16) % 1300;
			flags |= 0x08;
		}
		if ((load->random >> 8) % 128 == 1 && step == 1)
			fl->seq -= GEN_MSS; /* once more */
		fl->ts_data = now;
		f->tcp.seq = bpf_ntohl(fl->seq);
		f->tcp.ack_seq = bpf_ntohl(fl->ack);
		f->options[1] = bpf_ntohl(fl->ts_data);
		f->options[2] = bpf_ntohl(fl->ts_ack);
		fl->seq += len;
	} else {
		len = 0;
		fl->ts_ack = now;
		f->tcp.seq = bpf_ntohl(fl->ack);
		f->tcp.ack_seq = bpf_ntohl(fl->seq);
		f->options[1] = bpf_ntohl(fl->ts_ack);
		f->options[2] = bpf_ntohl(fl->ts_data);
		fl->window += (load->random >> 20) & 7;
		if ((load->random >> 8) % 128 == 1) {
			f->options[3] = bpf_ntohl(0x0101050a); /* NOP NOP SACK, one block */
			f->options[4] = bpf_ntohl(fl->seq + GEN_MSS);
			f->options[5] = bpf_ntohl(fl->seq + 2 * GEN_MSS);
			options = 24;
		}
	}
	f->options[0] = TS_HEADER;
	f->tcp.window = bpf_ntohs(fl->window);
	f->tcp.off_flags = bpf_ntohs((20 + options) << 10 | flags);
	f->ip.tot_len = bpf_ntohs(sizeof(struct iphdr) + sizeof(struct tcphdr) + options + len);
	*cookie = ((__u64)cpu << 32) + load->flow + 1;
	*seq = fl->events;
	return to_peer;
}

/* Sends what the slot holds as one ring record, waking the reader as the kernel sees fit. */
static __always_inline void send_one(struct slot *first, __u32 hook)
{
	struct slot *s = take(first, hook);
	__u32 len;

	if (!s)
		return;
	s->tally[hook].seen--;
	len = s->len;
	if (len && len <= SLOT_DATA) {
		s->batch.size = len;
		s->batch.cpu = bpf_get_smp_processor_id();
		if (bpf_ringbuf_output(&ring, &s->batch, sizeof(s->batch) + len, 0))
			s->dropped[hook]++;
		s->sent[hook] = s->tally[hook].made;
		s->len = 0;
		s->first = 0;
	}
	give(s);
}

static __always_inline void generate_one(struct __sk_buff *skb, __u32 hook, __u32 dir, __u64 cookie, __u64 seq)
{
	struct slot *first = first_slot();
	struct owner owner = {};
	struct packet p = {};

	if (!first)
		return;
	if (!find_tcp_fast(skb, &p)) {
		find_tcp(skb, &p, 1);
		if (!p.l4 || p.l4 > 4095)
			return;
	}
	if (dir == TCB_DIR_OUT) {
		find_owner(skb, first, &owner);
		owner.cookie = cookie;
		owner.seq = seq;
	}
	if (cfg_generate >= 2)
		record_packet(skb, first, &p, &owner, hook, dir);
	if (cfg_generate == 3)
		send_one(first, hook);
	if (cfg_generate == 1)
		skb->cb[0] = bpf_ktime_get_ns() + p.l4;
}

SEC("tc")
int generate(struct __sk_buff *skb)
{
	__u64 cookie = 0, seq = 0;
	int out = next_packet(skb, &cookie, &seq);

	if (!cfg_generate || out < 0)
		return TC_ACT_UNSPEC;
	if (out)
		generate_one(skb, TCB_HOOK_TC_EGRESS, TCB_DIR_OUT, cookie, seq);
	else
		generate_one(skb, TCB_HOOK_TC_INGRESS, TCB_DIR_IN, 0, 0);
	return TC_ACT_UNSPEC;
}

/* A socket's addresses as bpf_skc_lookup_tcp wants them, set at load. */
struct tuple {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
};

const volatile struct tuple cfg_tuple = {};

#define SAMPLES 8

/* Samples one real socket SAMPLES times, as the egress hook does. */
SEC("tc")
int generate_samples(struct __sk_buff *skb)
{
	struct tuple t = {cfg_tuple.saddr, cfg_tuple.daddr, cfg_tuple.sport, cfg_tuple.dport};
	struct sock_common *sk = bpf_skc_lookup_tcp(skb, &t, sizeof(t), -1, 0);
	struct slot *first = first_slot();
	int found = 0;

	if (!sk)
		return 1;
	for (int i = 0; i < SAMPLES; i++) {
		struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
		struct sock_state *st;
		struct tcb_sample *m;
		__u64 now, cookie;
		struct slot *s;

		if (!tp || !first)
			break;
		found = 1;
		cookie = ((struct sock *)tp)->__sk_common.skc_cookie.counter;
		st = sock_state((struct sock *)tp, cookie, NULL);
		if (cfg_generate == 0)
			continue;
		s = take(first, TCB_HOOK_TRANSMIT);
		if (!s)
			break;
		now = bpf_ktime_get_ns();
		m = room(s);
		if (m && cfg_generate == 2) {
			fill_header(&m->h, (struct sock *)tp, TCB_HOOK_TRANSMIT, cookie, st, now);
			m->h.kind = TCB_SAMPLE;
			m->h.size = sizeof(*m);
			m->h.dir = TCB_DIR_OUT;
			fill_sample(m, tp, st, now);
			m->trigger_seq = m->trigger_ack = m->trigger_len = 0;
			keep(s, TCB_HOOK_TRANSMIT, sizeof(*m), now);
		} else {
			s->tally[TCB_HOOK_TRANSMIT].seen--;
		}
		give(s);
	}
	bpf_sk_release(sk);
	return found ? TC_ACT_UNSPEC : 2;
}

#endif
