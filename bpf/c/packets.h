/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets at the tc hooks: parsed, recorded, and the sending socket sampled. */
#ifndef TCBEE_PACKETS_H
#define TCBEE_PACKETS_H

#include "sockets.h"

const volatile __u8 cfg_packets = 1;     /* record segments */
const volatile __u8 cfg_transmit = 1;    /* sample the socket of sent segments */
const volatile __u8 cfg_checksum = 0;
const volatile __u64 cfg_link_netns = 0; /* namespace of the interfaces, 0 unknown */

/* What parse found. Pointers lead into the packet or to the copies. */
struct packet {
	struct iphdr *ip4;
	struct ipv6hdr *ip6;
	struct tcphdr *tcp;
	__u64 family; /* 4 or 6: which of ip4 and ip6 is set */
	__u64 l3;     /* offset of the IP header */
	__u64 l4;     /* offset of the TCP header */
	__u16 vlan;
	__u16 vlan_inner;
	__u16 frag;
	__u16 pad;
};

/* Copies of headers that are not in the linear part of the skb. */
struct copies {
	union {
		struct iphdr ip4;
		struct ipv6hdr ip6;
	} ip;
	struct tcphdr tcp;
};

/* Returns size bytes at off: in place where they are linear, else copied to buf; NULL past the end. */
static __always_inline void *bytes_at(struct __sk_buff *skb, __u32 off, void *buf, __u32 size)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	if (off > 1024)
		return NULL;
	if (likely(data + off + size <= end))
		return data + off;
	if (bpf_skb_load_bytes(skb, off, buf, size))
		return NULL;
	return buf;
}

/* Finds the TCP header; 0 if there is none (not TCP, a later fragment, cut short). */
static __always_inline int parse(struct __sk_buff *skb, struct packet *p, struct copies *c, int l2)
{
	__u32 off = 0;
	__u16 proto;
	__u8 next;

	p->vlan = p->vlan_inner = 0xffff;
	p->frag = 0;
	p->family = 0;
	p->ip4 = NULL;
	p->ip6 = NULL;
	if (l2) {
		struct ethhdr copy, *eth = bytes_at(skb, 0, &copy, sizeof(copy));

		if (!eth)
			return 0;
		proto = eth->h_proto;
		off = sizeof(*eth);
		if (skb->vlan_present)
			p->vlan = skb->vlan_tci;
		for (int i = 0; i < 3; i++) {
			struct vlan_hdr tag, *t;

			if (likely(proto != bpf_ntohs(ETH_P_8021Q) && proto != bpf_ntohs(ETH_P_8021AD)))
				break;
			t = bytes_at(skb, off, &tag, sizeof(tag));
			if (!t)
				return 0;
			if (p->vlan == 0xffff)
				p->vlan = bpf_ntohs(t->tci);
			else if (p->vlan_inner == 0xffff)
				p->vlan_inner = bpf_ntohs(t->tci);
			proto = t->proto;
			off += sizeof(tag);
		}
	} else {
		proto = skb->protocol;
	}
	p->l3 = off;
	if (proto == bpf_ntohs(ETH_P_IP)) {
		struct iphdr *ip = bytes_at(skb, off, &c->ip.ip4, sizeof(*ip));

		if (!ip || ip->protocol != IPPROTO_TCP)
			return 0;
		p->frag = bpf_ntohs(ip->frag_off);
		if (p->frag & 0x1fff)
			return 0;
		p->ip4 = ip;
		p->family = 4;
		off += (ip->ver_ihl & 15) * 4;
	} else if (proto == bpf_ntohs(ETH_P_IPV6)) {
		struct ipv6hdr *ip = bytes_at(skb, off, &c->ip.ip6, sizeof(*ip));

		if (!ip)
			return 0;
		p->ip6 = ip;
		p->family = 6;
		next = ip->nexthdr;
		off += sizeof(*ip);
		for (int i = 0; i < 6 && unlikely(next != IPPROTO_TCP); i++) {
			__u8 copy[4], *e;

			e = bytes_at(skb, off, copy, sizeof(copy));
			if (!e)
				return 0;
			switch (next) {
			case IPPROTO_HOPOPTS:
			case IPPROTO_ROUTING:
			case IPPROTO_DSTOPTS:
				off += (e[1] + 1) * 8;
				break;
			case IPPROTO_AH:
				off += (e[1] + 2) * 4;
				break;
			case IPPROTO_FRAGMENT:
				p->frag = e[2] << 8 | e[3];
				if (p->frag & 0xfff8)
					return 0;
				off += 8;
				break;
			default:
				return 0;
			}
			next = e[0];
		}
		if (next != IPPROTO_TCP)
			return 0;
	} else {
		return 0;
	}
	p->l4 = off;
	p->tcp = bytes_at(skb, off, &c->tcp, sizeof(c->tcp));
	return p->tcp != NULL;
}

/* Copies n option bytes (n a multiple of 4, at most 40) and zeroes up to the next multiple of 8. */
static __always_inline void copy_options(struct __sk_buff *skb, __u32 off, __u32 n, __u8 *dst)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	__u32 *to = (__u32 *)dst;
	__u32 *from = data + off;

	if (likely(n == 12) && likely((void *)(from + 3) <= end)) {
		to[0] = from[0];
		to[1] = from[1];
		to[2] = from[2];
		to[3] = 0;
		return;
	}
	if (!n)
		return;
	if (n > TCB_OPTIONS_MAX)
		return;
	to[0] = to[1] = to[2] = to[3] = to[4] = to[5] = to[6] = to[7] = to[8] = to[9] = 0;
	bpf_skb_load_bytes(skb, off, dst, n);
}

/* The payload of the whole skb, and the wire segments that it is. */
static __always_inline __u32 payload(struct __sk_buff *skb, struct packet *p, __u32 tcp_len)
{
	__u32 total = p->family == 4 ? bpf_ntohs(p->ip4->tot_len) : bpf_ntohs(p->ip6->payload_len);
	__u32 headers = p->l4 - p->l3 + tcp_len;

	if (unlikely(!total))
		total = skb->len - p->l3; /* longer than 16 bits can say: BIG TCP, jumbogram */
	else if (p->family == 6)
		total += sizeof(struct ipv6hdr);
	return total > headers ? total - headers : 0;
}

static __always_inline int on_packet(struct __sk_buff *skb, __u32 hook, __u32 dir, int l2)
{
	struct tcp_sock *tp = NULL;
	struct sock_state *st = NULL;
	struct tcb_segment *r;
	struct tcb_sample *m;
	struct copies copies;
	struct packet p;
	struct slot *s;
	__u64 now, cookie = 0;
	__u32 tcp_len, n, len, seq, ack;
	__u16 flags;

	if (!parse(skb, &p, &copies, l2))
		return TC_ACT_UNSPEC;

	if (dir == TCB_DIR_OUT) {
		/*
		 * skb->sk is the sender's. In a namespace that only forwards it
		 * belongs to another one: that is not this side's socket.
		 */
		void *sk = skb->sk;

		if (sk) {
			tp = bpf_skc_to_tcp_sock(sk);
			if (tp) {
				struct sock *full = (struct sock *)tp;

				if (full->__sk_common.skc_net.net->net_cookie != cfg_link_netns ||
				    BITS(full, sk_type) != SOCK_STREAM) {
					tp = NULL;
				} else {
					cookie = full->__sk_common.skc_cookie.counter;
					if (!cookie)
						cookie = bpf_get_socket_cookie(skb);
					st = sock_state(full, cookie);
				}
			} else {
				/* A SYN-ACK's: the connection will inherit its cookie. */
				struct tcp_request_sock *rsk = bpf_skc_to_tcp_request_sock(sk);

				if (rsk && rsk->req.req.__req_common.skc_net.net->net_cookie == cfg_link_netns)
					cookie = bpf_get_socket_cookie(skb);
			}
		}
	}

	seq = bpf_ntohl(p.tcp->seq);
	ack = bpf_ntohl(p.tcp->ack_seq);
	flags = bpf_ntohs(p.tcp->off_flags);
	tcp_len = flags >> 12 << 2;
	len = payload(skb, &p, tcp_len);

	if (!cfg_packets)
		goto sample;
	s = take(hook);
	if (!s)
		goto sample;
	now = bpf_ktime_get_ns();
	r = room(s);
	if (!r) {
		skip(s, hook);
		return TC_ACT_UNSPEC;
	}
	r->h.time = now;
	r->h.cookie = cookie;
	r->h.netns = cfg_link_netns;
	r->h.sock_seq = next_seq(st);
	r->h.kind = TCB_SEGMENT;
	r->h.hook = hook;
	r->h.cpu = bpf_get_smp_processor_id();
	r->h.dir = dir;
	if (dir == TCB_DIR_OUT) {
		r->h.local_port = bpf_ntohs(p.tcp->source);
		r->h.peer_port = bpf_ntohs(p.tcp->dest);
	} else {
		r->h.local_port = bpf_ntohs(p.tcp->dest);
		r->h.peer_port = bpf_ntohs(p.tcp->source);
	}
	if (p.family == 4) {
		r->h.family = 4;
		map4(dir == TCB_DIR_OUT ? r->h.local : r->h.peer, p.ip4->saddr);
		map4(dir == TCB_DIR_OUT ? r->h.peer : r->h.local, p.ip4->daddr);
		r->ip_id = bpf_ntohs(p.ip4->id);
		r->tos = p.ip4->tos;
		r->ttl = p.ip4->ttl;
	} else {
		__u32 first = bpf_ntohl(p.ip6->ver_class_flow);

		r->h.family = 6;
		__builtin_memcpy(dir == TCB_DIR_OUT ? r->h.local : r->h.peer, p.ip6->saddr, 16);
		__builtin_memcpy(dir == TCB_DIR_OUT ? r->h.peer : r->h.local, p.ip6->daddr, 16);
		r->ip_id = first & 0xfffff;
		r->tos = first >> 20;
		r->ttl = p.ip6->hop_limit;
	}
	r->ip_off = p.frag;
	r->seq = seq;
	r->ack = ack;
	r->payload_len = len;
	r->ifindex = skb->ifindex;
	r->tcp_flags = flags & 0xfff;
	r->window = bpf_ntohs(p.tcp->window);
	r->urgent = bpf_ntohs(p.tcp->urg_ptr);
	r->checksum = cfg_checksum ? bpf_ntohs(p.tcp->check) : 0;
	n = skb->gso_size;
	r->gso_size = n;
	if (n) {
		__u32 segs = skb->gso_segs;

		if (!segs)
			segs = (len + n - 1) / n;
		r->gso_segs = segs ? segs : 1;
	} else {
		r->gso_segs = 1;
	}
	r->vlan = p.vlan;
	r->vlan_inner = p.vlan_inner;
	r->wire_len = skb->len;
	r->ip_len = p.l4 - p.l3;
	r->tcp_len = tcp_len;
	n = tcp_len - sizeof(struct tcphdr);
	if (n > TCB_OPTIONS_MAX)
		n = 0;
	r->options_len = n;
	copy_options(skb, p.l4 + sizeof(struct tcphdr), n, r->options);
	n = (offset_of(struct tcb_segment, options) + n + 7) & ~7U;
	r->h.size = n;
	keep(s, hook, n, now);
	give(s);

sample:
	if (dir != TCB_DIR_OUT || !cfg_transmit || !tp)
		return TC_ACT_UNSPEC;
	s = take(TCB_HOOK_TRANSMIT);
	if (!s)
		return TC_ACT_UNSPEC;
	now = bpf_ktime_get_ns();
	if (cfg_changes_only && unchanged(tp, st)) {
		skip(s, TCB_HOOK_TRANSMIT);
		return TC_ACT_UNSPEC;
	}
	m = room(s);
	if (!m) {
		skip(s, TCB_HOOK_TRANSMIT);
		return TC_ACT_UNSPEC;
	}
	fill_header(&m->h, (struct sock *)tp, TCB_HOOK_TRANSMIT, cookie, st, now);
	m->h.kind = TCB_SAMPLE;
	m->h.size = sizeof(*m);
	m->h.dir = TCB_DIR_OUT;
	fill_sample(m, tp, now);
	m->trigger_seq = seq;
	m->trigger_ack = ack;
	m->trigger_len = len;
	keep(s, TCB_HOOK_TRANSMIT, sizeof(*m), now);
	give(s);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int tc_ingress(struct __sk_buff *skb)
{
	return on_packet(skb, TCB_HOOK_TC_INGRESS, TCB_DIR_IN, 1);
}

SEC("tc")
int tc_egress(struct __sk_buff *skb)
{
	return on_packet(skb, TCB_HOOK_TC_EGRESS, TCB_DIR_OUT, 1);
}

/* For devices without a link header: tun, wireguard, ipip. */
SEC("tc")
int tc_ingress_l3(struct __sk_buff *skb)
{
	return on_packet(skb, TCB_HOOK_TC_INGRESS, TCB_DIR_IN, 0);
}

SEC("tc")
int tc_egress_l3(struct __sk_buff *skb)
{
	return on_packet(skb, TCB_HOOK_TC_EGRESS, TCB_DIR_OUT, 0);
}

#endif
