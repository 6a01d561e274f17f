/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The one definition of what the kernel programs hand to user space.
 *
 * Every record starts with struct tcb_header and is a multiple of 8 bytes long.
 * Fields have fixed widths, structs are not packed and have no implicit
 * padding. Numbers are in host byte order (amd64 and arm64: little endian),
 * addresses and nothing else in network byte order. The Go twin is event.go;
 * a test compares the two through the BTF of the committed object.
 */
#ifndef TCBEE_EVENT_H
#define TCBEE_EVENT_H

/* Kinds of records. 0 is never used. 16 and up are made in user space only. */
enum tcb_kind {
	TCB_SEGMENT  = 1, /* struct tcb_segment: one skb on an interface */
	TCB_SAMPLE   = 2, /* struct tcb_sample: a socket's state */
	TCB_INCIDENT = 3, /* struct tcb_incident: something happened to a connection */
};

/* Hooks. A record names the hook that made it, counters are kept per hook. */
enum tcb_hook {
	TCB_HOOK_NONE               = 0,
	TCB_HOOK_TC_INGRESS         = 1,
	TCB_HOOK_TC_EGRESS          = 2,
	TCB_HOOK_XDP                = 3,
	TCB_HOOK_TCP_PROBE          = 4,  /* sample, in */
	TCB_HOOK_TRANSMIT           = 5,  /* sample, out */
	TCB_HOOK_SET_STATE          = 6,  /* tp_btf/inet_sock_set_state */
	TCB_HOOK_RETRANSMIT_SKB     = 7,
	TCB_HOOK_RETRANSMIT_SYNACK  = 8,
	TCB_HOOK_SEND_RESET         = 9,
	TCB_HOOK_RECEIVE_RESET      = 10,
	TCB_HOOK_CONG_STATE_SET     = 11,
	TCB_HOOK_BAD_CSUM           = 12,
	TCB_HOOK_DESTROY_SOCK       = 13, /* final sample */
	TCB_HOOK_KFREE_SKB          = 14,
	TCB_HOOK_RCV_SPACE_ADJUST   = 15,
	TCB_HOOK_INVENTORY          = 16, /* sample of a socket that was there before */
	TCB_HOOKS                   = 24, /* room in the counters */
};

enum tcb_dir {
	TCB_DIR_NONE = 0,
	TCB_DIR_IN   = 1,
	TCB_DIR_OUT  = 2,
};

/*
 * Common to all records: 72 bytes. local is this host's side as the hook sees
 * it: the destination of a received packet, the source of a sent one.
 */
struct tcb_header {
	__u64 time;       /* bpf_ktime_get_ns: CLOCK_MONOTONIC, ns */
	__u64 cookie;     /* socket cookie, 0 where the hook has no full socket */
	__u64 netns;      /* network namespace cookie (init_net has one too), 0 unknown */
	__u32 sock_seq;   /* per-socket event counter from 1; 0 where there is none */
	__u16 size;       /* of the whole record, a multiple of 8 */
	__u8  kind;       /* enum tcb_kind */
	__u8  hook;       /* enum tcb_hook */
	__u8  local[16];  /* IPv6, or IPv4 as ::ffff:a.b.c.d */
	__u8  peer[16];
	__u16 local_port;
	__u16 peer_port;
	__u16 cpu;
	__u8  family;     /* 4 or 6: of the packet or socket */
	__u8  dir;        /* enum tcb_dir */
};

#define TCB_OPTIONS_MAX 40

/*
 * One skb with a TCP header. options holds options_len bytes and the record
 * ends there, rounded up to 8 (the rest zeroed).
 */
struct tcb_segment {
	struct tcb_header h;
	__u32 seq;
	__u32 ack;
	__u32 payload_len; /* TCP payload bytes of the whole skb (all GSO segments) */
	__u32 ifindex;
	__u16 tcp_flags;   /* 12 bits: reserved(3) AE CWR ECE URG ACK PSH RST SYN FIN */
	__u16 window;      /* as on the wire, unscaled */
	__u16 urgent;
	__u16 checksum;    /* 0 unless packets.checksum */
	__u16 gso_size;    /* 0: not GSO */
	__u16 gso_segs;    /* segments on the wire, at least 1 */
	__u32 ip_id;       /* IPv4 identification; IPv6: flow label */
	__u16 ip_off;      /* IPv4 flags and fragment offset; IPv6: of the fragment header */
	__u16 vlan;        /* outermost TCI, 0xffff none */
	__u16 vlan_inner;  /* second TCI of QinQ, 0xffff none */
	__u8  tos;         /* DSCP and ECN */
	__u8  ttl;         /* or hop limit */
	__u32 wire_len;    /* skb->len at the hook: with link header, whole GSO skb */
	__u16 ip_len;      /* IP header with options or extension headers, bytes */
	__u8  tcp_len;     /* TCP header with options, bytes */
	__u8  options_len; /* bytes valid in options */
	__u8  options[TCB_OPTIONS_MAX];
};

/* Bits of tcb_sample.present: groups of fields that some kernels lack. */
enum tcb_present {
	TCB_HAS_RCV_WND    = 1 << 0, /* 6.2 */
	TCB_HAS_REHASH     = 1 << 1, /* 6.2 (timeout_rehash: 5.7) */
	TCB_HAS_TOTAL_RTO  = 1 << 2, /* 6.7 */
	TCB_HAS_ACCECN     = 1 << 3, /* 6.18 */
	TCB_HAS_CA_PRIV    = 1 << 4, /* ca_priv is as event.go reads it (cubic, bbr) */
	TCB_HAS_TCP        = 1 << 5, /* the tcp_sock fields are filled (not a minisock) */
	TCB_HAS_CA_MORE    = 1 << 6, /* ca_more is filled (bbr) */
};

/*
 * The state of a socket. Names and units are those of struct tcp_info
 * (include/uapi/linux/tcp.h) where it has the field: times in microseconds
 * (*_us here) or milliseconds (last_*, as tcp_info), never jiffies or scaled values.
 */
struct tcb_sample {
	struct tcb_header h;
	__u64 pacing_rate;       /* bytes/s, ~0 = unlimited */
	__u64 max_pacing_rate;   /* bytes/s, ~0 = unlimited */
	__u64 bytes_acked;
	__u64 bytes_received;
	__u64 delivery_rate;     /* bytes/s */
	__u64 busy_time;         /* us */
	__u64 rwnd_limited;      /* us */
	__u64 sndbuf_limited;    /* us */
	__u64 bytes_sent;
	__u64 bytes_retrans;
	__u32 rto;               /* us */
	__u32 ato;               /* us */
	__u32 snd_mss;
	__u32 rcv_mss;
	__u32 unacked;           /* segments; listeners: accept queue length */
	__u32 sacked;            /* segments; listeners: accept queue limit */
	__u32 lost;              /* segments marked lost now */
	__u32 retrans;           /* retransmitted and not yet acknowledged */
	__u32 last_data_sent;    /* ms before this sample */
	__u32 last_data_recv;
	__u32 last_ack_recv;
	__u32 pmtu;
	__u32 rcv_ssthresh;
	__u32 rtt;               /* us, smoothed */
	__u32 rttvar;            /* us */
	__u32 snd_ssthresh;      /* 0x7fffffff: unset */
	__u32 snd_cwnd;
	__u32 advmss;
	__u32 reordering;
	__u32 rcv_rtt;           /* us */
	__u32 rcv_space;
	__u32 total_retrans;
	__u32 segs_out;
	__u32 segs_in;
	__u32 notsent_bytes;
	__u32 min_rtt;           /* us, ~0: none yet */
	__u32 data_segs_in;
	__u32 data_segs_out;
	__u32 delivered;
	__u32 delivered_ce;
	__u32 dsack_dups;
	__u32 reord_seen;
	__u32 rcv_ooopack;
	__u32 snd_wnd;           /* bytes, scaled */
	__u32 rcv_wnd;
	__u32 rehash;
	__u32 total_rto_time;    /* ms */
	__u16 total_rto;
	__u16 total_rto_recoveries;
	__u32 received_ce;       /* AccECN from here ... */
	__u32 delivered_e1_bytes;
	__u32 delivered_e0_bytes;
	__u32 delivered_ce_bytes;
	__u32 received_e1_bytes;
	__u32 received_e0_bytes;
	__u32 received_ce_bytes; /* ... to here, with the next two */
	__u16 accecn_fail_mode;
	__u16 accecn_opt_seen;
	__u8  state;             /* TCP_ESTABLISHED ... of tcp_states.h */
	__u8  ca_state;          /* TCP_CA_Open ... */
	__u8  retransmits;       /* consecutive timeouts */
	__u8  probes;
	__u8  backoff;
	__u8  options;           /* TCPI_OPT_* */
	__u8  snd_wscale;
	__u8  rcv_wscale;
	__u8  app_limited;       /* delivery_rate_app_limited */
	__u8  fastopen_client_fail;
	__u16 present;           /* enum tcb_present */
	__u32 snd_una;           /* not in tcp_info from here on */
	__u32 snd_nxt;
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 write_seq;
	__u32 rcv_wup;
	__u32 sk_rcvbuf;         /* bytes */
	__u32 sk_sndbuf;
	__u32 sk_wmem_queued;
	__u32 sk_mark;
	__u32 ca_priv[16];       /* first 64 bytes of icsk_ca_priv, raw: event/congestion.go reads CUBIC and BBR */
	__u8  ca_name[16];       /* tcp_congestion_ops.name, zero-padded */
	__u32 trigger_seq;       /* of the segment that the hook saw */
	__u32 trigger_ack;
	__u32 trigger_len;       /* its payload, bytes */
	__u32 ca_more[2];        /* bbr: words 19 (gains) and 20 (prior_cwnd) of icsk_ca_priv */
};

/*
 * Something that happened to a connection; which fields mean something is
 * said with each hook in event.go. process fields are those of the task that
 * ran, set only where that task is the connection's (opening states).
 */
struct tcb_incident {
	struct tcb_header h;
	__u64 cgroup;     /* cgroup v2 id, 0 unknown */
	__u64 location;   /* kernel address of the drop, for kfree_skb */
	__u32 seq;
	__u32 ack;
	__u32 len;        /* payload bytes of the skb */
	__u32 reason;     /* drop or reset reason, as the kernel numbers them */
	__s32 err;        /* tcp_retransmit_skb: result of the transmission */
	__u32 pid;        /* thread group id in the initial pid namespace */
	__u32 tid;
	__u32 uid;
	__u32 segs;       /* wire segments of the skb */
	__u16 tcp_flags;
	__u8  old_state;
	__u8  new_state;
	__u8  ca_state;
	__u8  sacked;     /* TCP_SKB_CB(skb)->sacked */
	__u16 present;    /* 1: process fields valid */
	__u32 value;      /* hook-specific: see event.go */
	__u8  comm[16];
};

/*
 * One ringbuf record: this header, then records back to back. lost_* tell
 * what this CPU could not hand over since the last batch that got through.
 */
struct tcb_batch {
	__u32 size;        /* bytes of records that follow */
	__u16 cpu;
	__u16 count;       /* records that follow */
	__u64 lost_first;  /* time of the first lost record, 0: none lost */
	__u64 lost_last;
	__u32 lost[TCB_HOOKS];
};

#endif
