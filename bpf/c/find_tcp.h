/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Finds the TCP header of any packet: VLAN tags, IPv4 options, IPv6 extension
 * headers, headers outside of the linear part. Included once for tc and once
 * for XDP, which read a packet by different helpers:
 *
 *	FIND_TCP  the name of the function
 *	CONTEXT   the type of the context
 *	LOAD      the helper: (context, offset, to, size), 0 if all went well
 *	TAGGED(c) true if the outer VLAN tag has been taken off, TAG(c) that tag
 *	PROTO(c)  the protocol of a packet without link header, big endian
 *
 * l4 stays 0 if there is no TCP header (not TCP, a later fragment, cut short).
 * A global function: verified once.
 */
__noinline int FIND_TCP(CONTEXT *ctx, struct packet *p, int l2)
{
	__u16 proto = PROTO(ctx);
	__u32 off = 0;
	union {
		struct vlan_hdr vlan;
		struct iphdr ip4;
		struct ipv6hdr ip6;
		__u8 ext[4];
	} u;

	if (!p)
		return 0;
	p->vlan = p->vlan_inner = 0xffff;
	p->frag = 0;
	p->family = 0;
	p->l3 = p->l4 = 0;
	if (l2) {
		off = offset_of(struct ethhdr, h_proto);
		if (LOAD(ctx, off, &proto, sizeof(proto)))
			return 0;
		off += sizeof(proto);
		if (TAGGED(ctx))
			p->vlan = TAG(ctx);
		for (int i = 0; i < 3; i++) {
			if (proto != bpf_ntohs(ETH_P_8021Q) && proto != bpf_ntohs(ETH_P_8021AD))
				break;
			if (LOAD(ctx, off, &u.vlan, sizeof(u.vlan)))
				return 0;
			if (p->vlan == 0xffff)
				p->vlan = bpf_ntohs(u.vlan.tci);
			else if (p->vlan_inner == 0xffff)
				p->vlan_inner = bpf_ntohs(u.vlan.tci);
			proto = u.vlan.proto;
			off += sizeof(u.vlan);
		}
	}
	p->l3 = off;
	if (proto == bpf_ntohs(ETH_P_IP)) {
		if (LOAD(ctx, off, &u.ip4, sizeof(u.ip4)) || u.ip4.protocol != IPPROTO_TCP)
			return 0;
		p->frag = bpf_ntohs(u.ip4.frag_off);
		if (p->frag & 0x1fff)
			return 0;
		p->family = 4;
		p->l4 = off + (u.ip4.ver_ihl & 15) * 4;
		return 0;
	}
	if (proto != bpf_ntohs(ETH_P_IPV6) || LOAD(ctx, off, &u.ip6, sizeof(u.ip6)))
		return 0;
	WRITE_ONCE(p->next, u.ip6.nexthdr);
	WRITE_ONCE(p->at, off + sizeof(u.ip6));
	for (int i = 0; i < 8 && READ_ONCE(p->next) != IPPROTO_TCP; i++) {
		off = READ_ONCE(p->at);
		if (LOAD(ctx, off, u.ext, sizeof(u.ext)))
			return 0;
		switch (READ_ONCE(p->next)) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
			off += (u.ext[1] + 1) * 8;
			break;
		case IPPROTO_AH:
			off += (u.ext[1] + 2) * 4;
			break;
		case IPPROTO_FRAGMENT:
			p->frag = u.ext[2] << 8 | u.ext[3];
			if (p->frag & 0xfff8)
				return 0;
			off += 8;
			break;
		default:
			return 0;
		}
		WRITE_ONCE(p->next, u.ext[0]);
		WRITE_ONCE(p->at, off);
	}
	if (READ_ONCE(p->next) != IPPROTO_TCP)
		return 0;
	p->family = 6;
	p->l4 = READ_ONCE(p->at);
	return 0;
}

#undef FIND_TCP
#undef CONTEXT
#undef LOAD
#undef TAGGED
#undef TAG
#undef PROTO
