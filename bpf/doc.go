// SPDX-License-Identifier: Apache-2.0

// Package bpf captures TCP in the kernel: it loads the programs of bpf/c, attaches them, and
// hands out batches of event records. It is the only package that knows cilium/ebpf.
//
// # How records travel
//
// A hook writes its record into a slot of its CPU, a full slot goes into one ring for all
// CPUs with a single bpf_ringbuf_output, and nobody is woken unless the ring is a quarter full while
// the reader sleeps. [Capture.Next] returns a batch where it lies in the ring. Every FlushAge the reader
// looks at the mapped slots, and has those that are old sent by a program that runs on their CPU;
// where nothing is pending this costs nothing. Measured on a shared machine of 2 CPUs
// (BenchmarkKernelPacket, BenchmarkKernelSample, BenchmarkReader): 60 ns for a packet, 30 of
// them beyond parsing and clock; 130 ns for a full sample; 30 ns to hand out a record. One
// ring record for each packet with the default wake-up costs 330 to 490 ns instead of the 30.
//
// Each CPU has four slots: a hook that interrupts another one takes the next. An event that
// finds all of them busy is counted and told as Lost, like a batch that finds the ring full.
//
// # Time and order
//
// A Tick with time T promises that no record older than T follows. T is the start of a
// round, or the oldest record still in a slot, less 50 µs for clocks that differ between CPUs; the
// Tick is given when all that lay in the ring after the round was read. Records of one socket are
// numbered by SockSeq, in the order in which the hooks ran. Anchors come every ten seconds, when
// the wall clock has drifted by a quarter of a millisecond, and at once when it is set: a timer that is
// cancelled then is waited for beside the reader.
//
// # Rights
//
// What takes rights is done at the start: programs are loaded, iterators and namespaces opened, a thread is left in the
// namespace of the interfaces. After the inventory [Capture.DropRights] can give up all capabilities of the
// process; tcx links to interfaces that appear later need none, filters of clsact need CAP_NET_ADMIN.
//
// # What the numbers mean
//
// Seen counts what a hook met before any filter. Hooks of tracepoints meet the sockets of all
// network namespaces, so that a capture of one namespace has the others' events as filtered.
//
// tcp_probe does not fire for segments that the kernel merged in a socket's backlog and those
// outside of ESTABLISHED, and shows the state before the segment is processed. The identity
// TcpInSegs = tcp_probe + TcpExtTCPBacklogCoalesce + outside ESTABLISHED holds (TestLoadOnAllCPUs).
// The kernel does not run a tracing program while the same one runs on that CPU. What interrupts it is told by a second
// one (TRACE in c/transport.h). What interrupts both is Missed, counted for the host (in the records of CPU 0) and not
// for a CPU. While samples are limited tcp_probe has one program, and what interrupts it counts as left out by the limit.
//
// A packet that passes several captured devices, such as a bridge and its port, is a Segment at
// each. A sample at tc egress is taken only if the sender's socket lives in the namespace of the
// device: a packet that is merely forwarded has no socket here.
//
// In the event of connect() (CLOSE to SYN_SENT) a socket has no local port yet; its cookie is that
// of all later events. A SYN-ACK bears the cookie that its connection will have. An accepted
// connection has its listener's process, as long as no other hands the socket on.
//
// # Rights
//
// CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN suffice. Another namespace than the own one (Config.Netns
// as a path, the inventory of other namespaces) takes CAP_SYS_ADMIN.
package bpf
