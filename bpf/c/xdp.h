/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Received packets at XDP, instead of tc ingress where the configuration asks for it. */
#ifndef TCBEE_XDP_H
#define TCBEE_XDP_H

#include "packets.h"

/* The context of XDP programs. The layout is ABI. */
struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
	__u32 rx_queue_index;
	__u32 egress_ifindex;
};

#define FIND_TCP  find_tcp_xdp
#define CONTEXT   struct xdp_md
#define LOAD      bpf_xdp_load_bytes
#define TAGGED(c) 0
#define TAG(c)    0xffff
#define PROTO(c)  0
#include "find_tcp.h"

/* There is no socket yet, no segment of GSO, and no tag that the device took off. */
SEC("xdp")
int xdp_ingress(struct xdp_md *ctx)
{
	__u32 tcp_len, n, total, l3, l4;
	struct slot *first = first_slot();
	struct packet found = {};
	struct tcb_segment *r;
	struct tcphdr tcp;
	struct slot *s;
	union {
		struct iphdr ip4;
		struct ipv6hdr ip6;
	} ip;
	__u16 flags;

	find_tcp_xdp(ctx, &found, 1);
	l3 = found.l3;
	l4 = found.l4;
	if (!l4 || l4 > 4096 || bpf_xdp_load_bytes(ctx, l4, &tcp, sizeof(tcp)))
		return XDP_PASS;
	if (found.family == 4 ? bpf_xdp_load_bytes(ctx, l3, &ip.ip4, sizeof(ip.ip4)) :
				bpf_xdp_load_bytes(ctx, l3, &ip.ip6, sizeof(ip.ip6)))
		return XDP_PASS;
	s = first ? take(first, TCB_HOOK_XDP) : NULL;
	if (!s)
		return XDP_PASS;
	r = room(s);
	if (!r)
		goto out; /* not reached */
	r->h.time = bpf_ktime_get_ns();
	r->h.cookie = 0;
	r->h.netns = cfg_link_netns;
	r->h.sock_seq = 0;
	r->h.kind = TCB_SEGMENT;
	r->h.hook = TCB_HOOK_XDP;
	r->h.local_port = bpf_ntohs(tcp.dest);
	r->h.peer_port = bpf_ntohs(tcp.source);
	r->h.cpu = bpf_get_smp_processor_id();
	r->h.dir = TCB_DIR_IN;
	if (found.family == 4) {
		r->h.family = 4;
		map4(r->h.peer, ip.ip4.saddr);
		map4(r->h.local, ip.ip4.daddr);
		r->ip_id = bpf_ntohs(ip.ip4.id);
		r->tos = ip.ip4.tos;
		r->ttl = ip.ip4.ttl;
		total = bpf_ntohs(ip.ip4.tot_len);
	} else {
		n = bpf_ntohl(ip.ip6.ver_class_flow);
		r->h.family = 6;
		copy_address(r->h.peer, ip.ip6.saddr);
		copy_address(r->h.local, ip.ip6.daddr);
		r->ip_id = n & 0xfffff;
		r->tos = n >> 20;
		r->ttl = ip.ip6.hop_limit;
		total = sizeof(ip.ip6) + bpf_ntohs(ip.ip6.payload_len);
	}
	if (cfg_filter && (!wanted(&r->h) || cfg_filter & FILTER_CGROUP)) {
		s->tally[TCB_HOOK_XDP].filtered++;
		goto out;
	}
	flags = bpf_ntohs(tcp.off_flags);
	tcp_len = flags >> 12 << 2;
	n = l4 - l3 + tcp_len;
	r->payload_len = total > n ? total - n : 0;
	r->seq = bpf_ntohl(tcp.seq);
	r->ack = bpf_ntohl(tcp.ack_seq);
	r->ifindex = ctx->ingress_ifindex;
	r->tcp_flags = flags & 0xfff;
	r->window = bpf_ntohs(tcp.window);
	r->urgent = bpf_ntohs(tcp.urg_ptr);
	r->checksum = cfg_checksum ? bpf_ntohs(tcp.check) : 0;
	r->gso_size = 0;
	r->gso_segs = 1;
	r->ip_off = found.frag;
	r->vlan = found.vlan;
	r->vlan_inner = found.vlan_inner;
	r->wire_len = bpf_xdp_get_buff_len(ctx);
	r->ip_len = l4 - l3;
	r->tcp_len = tcp_len;
	n = tcp_len - sizeof(tcp);
	if (n > TCB_OPTIONS_MAX)
		n = 0;
	r->options_len = n;
	if (n) {
		__builtin_memset(r->options, 0, sizeof(r->options));
		/* For the verifier of 6.1, as in copy_options. */
		total = n;
		asm volatile("" : "+r"(total));
		bpf_xdp_load_bytes(ctx, l4 + sizeof(tcp), r->options, ((total - 1) & 63) + 1);
	}
	n = (offset_of(struct tcb_segment, options) + n + 7) & ~7U;
	r->h.size = n;
	keep(s, TCB_HOOK_XDP, n, r->h.time);
out:
	give(s);
	return XDP_PASS;
}

#endif
