/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The part of the BPF user ABI that the programs need: integer types, map
 * types, helpers by number and the context of tc programs. Written out here
 * so that generating needs clang and nothing else.
 */
#ifndef TCBEE_BPF_H
#define TCBEE_BPF_H

typedef unsigned char __u8;
typedef signed int __s32;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef signed long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;

#define SEC(name) __attribute__((section(name), used))
#define __always_inline inline __attribute__((always_inline))
#define __noinline __attribute__((noinline))
#define __hidden __attribute__((visibility("hidden")))
#define NULL ((void *)0)
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define barrier() asm volatile("" ::: "memory")
#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))
#define offset_of(type, member) __builtin_offsetof(type, member)

#define bpf_ntohs(x) __builtin_bswap16(x)
#define bpf_ntohl(x) __builtin_bswap32(x)

/* CO-RE questions about a field of the running kernel. */
#define FIELD_OFFSET(field) __builtin_preserve_field_info(field, 0)
#define FIELD_SIZE(field)   __builtin_preserve_field_info(field, 1)
#define FIELD_EXISTS(field) __builtin_preserve_field_info(field, 2)
#define FIELD_LSHIFT(field) __builtin_preserve_field_info(field, 4)
#define FIELD_RSHIFT(field) __builtin_preserve_field_info(field, 5)

/* Reads a bit-field, or an unsigned integer whose width differs among kernels. */
#define BITS(s, field) ({                                                        \
	const void *_p = (const void *)(s) + FIELD_OFFSET((s)->field);           \
	__u64 _v;                                                                \
	asm volatile("" : "=r"(_p) : "0"(_p));                                   \
	switch (FIELD_SIZE((s)->field)) {                                        \
	case 1: _v = *(const __u8 *)_p; break;                                   \
	case 2: _v = *(const __u16 *)_p; break;                                  \
	case 4: _v = *(const __u32 *)_p; break;                                  \
	default: _v = *(const __u64 *)_p;                                        \
	}                                                                        \
	_v <<= FIELD_LSHIFT((s)->field);                                         \
	_v >> FIELD_RSHIFT((s)->field);                                          \
})

enum bpf_map_type {
	BPF_MAP_TYPE_HASH       = 1,
	BPF_MAP_TYPE_ARRAY      = 2,
	BPF_MAP_TYPE_LPM_TRIE   = 11,
	BPF_MAP_TYPE_SK_STORAGE = 24,
	BPF_MAP_TYPE_RINGBUF    = 27,
};

#define BPF_F_NO_PREALLOC           (1U << 0)
#define BPF_F_CLONE                 (1U << 9)
#define BPF_F_MMAPABLE              (1U << 10)
#define BPF_SK_STORAGE_GET_F_CREATE 1
#define BPF_RB_NO_WAKEUP            1
#define BPF_RB_FORCE_WAKEUP         2
#define BPF_RB_AVAIL_DATA           0

/* As TCX_NEXT: the packet goes on to the next program, or on its way. */
#define TC_ACT_UNSPEC (-1)
#define XDP_PASS      2

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)5;
static __u32 (*const bpf_get_smp_processor_id)(void) = (void *)8;
static __u64 (*const bpf_get_current_pid_tgid)(void) = (void *)14;
static __u64 (*const bpf_get_current_uid_gid)(void) = (void *)15;
static long (*const bpf_get_current_comm)(void *buf, __u32 size) = (void *)16;
static long (*const bpf_skb_load_bytes)(const void *skb, __u32 offset, void *to, __u32 len) = (void *)26;
static __u64 (*const bpf_get_socket_cookie)(void *ctx) = (void *)46;
static struct sock_common *(*const bpf_skc_lookup_tcp)(void *ctx, void *tuple, __u32 size, __u64 netns, __u64 flags) = (void *)99;
static long (*const bpf_sk_release)(void *sk) = (void *)86;
static __u64 (*const bpf_get_current_cgroup_id)(void) = (void *)80;
static void *(*const bpf_sk_storage_get)(void *map, void *sk, void *value, __u64 flags) = (void *)107;
static long (*const bpf_probe_read_kernel)(void *dst, __u32 size, const void *from) = (void *)113;
static __u64 (*const bpf_jiffies64)(void) = (void *)118;
static long (*const bpf_seq_write)(void *m, const void *data, __u32 len) = (void *)127;
static long (*const bpf_ringbuf_output)(void *ring, void *data, __u64 size, __u64 flags) = (void *)130;
static __u64 (*const bpf_ringbuf_query)(void *ring, __u64 flags) = (void *)134;
static struct tcp_sock *(*const bpf_skc_to_tcp_sock)(void *sk) = (void *)137;
static struct tcp_request_sock *(*const bpf_skc_to_tcp_request_sock)(void *sk) = (void *)139;
static __u64 (*const bpf_xdp_get_buff_len)(void *ctx) = (void *)188;
static long (*const bpf_xdp_load_bytes)(void *ctx, __u32 offset, void *to, __u32 len) = (void *)189;

/* The context of tc programs. The layout is ABI. */
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
	__u32 napi_id;
	__u32 family;
	__u32 remote_ip4;
	__u32 local_ip4;
	__u32 remote_ip6[4];
	__u32 local_ip6[4];
	__u32 remote_port;
	__u32 local_port;
	__u32 data_meta;
	__u64 flow_keys;
	__u64 tstamp;
	__u32 wire_len;
	__u32 gso_segs;
	__attribute__((aligned(8))) void *sk;
	__u32 gso_size;
	__u32 tstamp_type;
	__u64 hwtstamp;
};

/* Packet headers, in network byte order. */
struct ethhdr {
	__u8   h_dest[6];
	__u8   h_source[6];
	__be16 h_proto;
};

struct vlan_hdr {
	__be16 tci;
	__be16 proto;
};

struct iphdr {
	__u8   ver_ihl;
	__u8   tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	__u8   ttl;
	__u8   protocol;
	__be16 check;
	__be32 saddr;
	__be32 daddr;
};

struct ipv6hdr {
	__be32 ver_class_flow;
	__be16 payload_len;
	__u8   nexthdr;
	__u8   hop_limit;
	__be32 saddr[4];
	__be32 daddr[4];
};

struct tcphdr {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack_seq;
	__be16 off_flags;
	__be16 window;
	__be16 check;
	__be16 urg_ptr;
};

#define ETH_P_IP     0x0800
#define ETH_P_IPV6   0x86dd
#define ETH_P_8021Q  0x8100
#define ETH_P_8021AD 0x88a8

#define IPPROTO_HOPOPTS  0
#define IPPROTO_TCP      6
#define IPPROTO_ROUTING  43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_AH       51
#define IPPROTO_DSTOPTS  60

#define AF_INET     2
#define AF_INET6    10
#define SOCK_STREAM 1

#endif
