// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Generator drives a Capture's real programs with traffic that looks like the real one:
// many connections in both directions, with moving sequence numbers, acknowledgments,
// timestamps, windows, and now and then a short segment, a repeated one, or a SACK block. Nothing
// touches the network: the packets are written by a kernel program into the skb of
// BPF_PROG_TEST_RUN and recorded with the code of the tc hooks, counters and all.
//
// Connections are 10.CPU.x.y to 192.168.x.y:443; the even ones send data, the odd ones receive it.
type Generator struct {
	coll  *ebpf.Collection
	prog  *ebpf.Program
	loads *ebpf.Map
	frame []byte
	busy  atomic.Int64 // ns of CPU time of the threads that generated
}

// What a generator's program does with the packets it writes.
const (
	generateOnly   = 0 // nothing
	generateParse  = 1 // parse them and read the clock
	generateRecord = 2 // record them
	generateSingle = 3 // record them, each with a ring record of its own and the default wake-up
)

// generatorFrame is the length of struct frame, generatorTail some payload.
const (
	generatorFrame = 14 + 20 + 20 + 40
	generatorTail  = 34
)

// NewGenerator returns a generator of load for c, with that many connections on each CPU. It
// must be closed before c is.
func NewGenerator(c *Capture, flows int) (*Generator, error) {
	return c.obj.generator(programsProgGenerate, flows, generateRecord, programsTuple{})
}

// generator loads one of the generating programs with settings of its own.
func (o *object) generator(name string, flows int, mode uint32, socket programsTuple) (*Generator, error) {
	if flows < 1 || flows > 1<<14 {
		return nil, fmt.Errorf("generate traffic: %d connections, want 1 to %d", flows, 1<<14)
	}
	spec := o.spec.Copy()
	spec.Programs = map[string]*ebpf.ProgramSpec{name: o.spec.Programs[name].Copy()}
	spec.Maps[programsMapFlows].MaxEntries = uint32(flows * o.cpus)
	spec.Maps[programsMapLoads].MaxEntries = uint32(o.cpus)
	for name, v := range map[string]any{
		programsVarCfgFlows:    uint32(flows),
		programsVarCfgGenerate: mode,
		programsVarCfgTuple:    socket,
	} {
		if err := spec.Variables[name].Set(v); err != nil {
			panic("BUG: set " + name + ": " + err.Error())
		}
	}
	shared := maps.Clone(o.coll.Maps)
	delete(shared, ".rodata")
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		return nil, explain("load "+name, err, false)
	}
	g := &Generator{coll: coll, prog: coll.Programs[name], loads: coll.Maps[programsMapLoads],
		frame: make([]byte, generatorFrame+generatorTail)}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range uint32(flows * o.cpus) {
		f := programsFlow{Seq: rng.Uint32(), Ack: rng.Uint32(), TsData: rng.Uint32(), TsAck: rng.Uint32(),
			Id: uint16(rng.Uint32()), Window: uint16(rng.Uint32()) | 0x100}
		if err := coll.Maps[programsMapFlows].Put(i, f); err != nil {
			g.Close()
			return nil, fmt.Errorf("generate traffic: %w", err)
		}
	}
	for cpu := range uint32(o.cpus) {
		if err := g.loads.Put(cpu, programsLoad{Random: rng.Uint32()}); err != nil {
			g.Close()
			return nil, fmt.Errorf("generate traffic: %w", err)
		}
	}
	return g, nil
}

// Run generates packets on a CPU until ctx ends: perSecond of them each second, or as many as
// the CPU can if that is 0. It returns how many it made; the end of ctx is no error. It may
// run on several CPUs at once.
func (g *Generator) Run(ctx context.Context, cpu, perSecond int) (sent uint64, err error) {
	// The thread is the generator's: its affinity dies with it.
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		before := threadCPU()
		sent, err = g.run(ctx, cpu, perSecond)
		g.busy.Add(threadCPU() - before)
	}()
	<-done
	return sent, err
}

func (g *Generator) run(ctx context.Context, cpu, perSecond int) (uint64, error) {
	if err := pin(cpu); err != nil {
		return 0, err
	}
	before, err := g.made(cpu)
	if err != nil {
		return 0, err
	}
	const most = 16384 // packets in one call: about 2 ms
	start := time.Now()
	var asked uint64
	for ctx.Err() == nil {
		n := uint64(most)
		if perSecond > 0 {
			due := uint64(time.Since(start).Seconds() * float64(perSecond))
			if due <= asked {
				time.Sleep(200 * time.Microsecond)
				continue
			}
			n = min(due-asked, most)
		}
		if _, _, err := g.prog.Benchmark(g.frame, int(n), nil); err != nil {
			return 0, fmt.Errorf("generate traffic: %w", err)
		}
		asked += n
	}
	after, err := g.made(cpu)
	return after - before, err
}

// Busy is the CPU time that finished calls of Run have used.
func (g *Generator) Busy() time.Duration { return time.Duration(g.busy.Load()) }

// cost runs the program n times on the current CPU and returns the time of one run.
func (g *Generator) cost(n int) (time.Duration, error) {
	_, d, err := g.prog.Benchmark(g.frame, n, nil)
	return d, err
}

// made is the number of packets made on a CPU so far.
func (g *Generator) made(cpu int) (uint64, error) {
	var l programsLoad
	if err := g.loads.Lookup(uint32(cpu), &l); err != nil {
		return 0, fmt.Errorf("generate traffic: %w", err)
	}
	return l.Count, nil
}

// Close releases the generator's program.
func (g *Generator) Close() {
	g.coll.Close()
}

// threadCPU is the CPU time that the current thread has used, in ns.
func threadCPU() int64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_THREAD, &u) != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// pin keeps the current thread on a CPU.
func pin(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		if errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("there is no CPU %d to run on: %w", cpu, err)
		}
		return fmt.Errorf("run on CPU %d: %w", cpu, err)
	}
	return nil
}
