// SPDX-License-Identifier: Apache-2.0

package spool

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Readers in other processes ask the recorder through a Unix socket in the spool's directory. One request is one line of JSON, and so is its
// answer. A waiting socket costs nothing.
type request struct {
	Op string `json:"op"` // rotate, stats
}

type answer struct {
	Last  ID     `json:"last_id"` // the last block that can be read now
	Stats *Stats `json:"stats,omitempty"`
	Error string `json:"error,omitempty"`
}

const (
	opRotate = "rotate"
	opStats  = "stats"

	// A reader sees all that is older than this; more often the recorder does not rotate for readers.
	rotateInterval = time.Second

	controlTimeout = 5 * time.Second
	controlPeers   = 16 // served at a time; more wait in the socket's queue
)

type control struct {
	w     *Writer
	l     net.Listener
	dir   *os.File // keeps the socket's path valid, see socketPath
	peers sync.WaitGroup
	ctx   context.Context // ended by close; it is the server's own, not a caller's
	end   context.CancelFunc

	mu      sync.Mutex
	rotated time.Time // when a reader was served last
	served  ID        // what it could read
}

// socketPath gives the path for the socket. Where the directory's own is too long for a socket (107 bytes), the way leads through an open
// descriptor of the directory, which the caller closes when done.
func socketPath(dir string) (string, *os.File, error) {
	path := filepath.Join(dir, socketName)
	if len(path) < 104 {
		return path, nil, nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), socketName), d, nil
}

// listen makes the socket. The lock is held: what is there was left by a dead recorder.
func listen(w *Writer) (*control, error) {
	if err := os.Remove(filepath.Join(w.cfg.Dir, socketName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	path, dir, err := socketPath(w.cfg.Dir)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		if dir != nil {
			_ = dir.Close()
		}
		return nil, err
	}
	c := &control{w: w, l: l, dir: dir}
	c.ctx, c.end = context.WithCancel(context.Background())
	c.peers.Add(1)
	go c.serve()
	return c, nil
}

func (c *control) close() {
	if c == nil {
		return
	}
	c.end()
	_ = c.l.Close() // removes the socket
	c.peers.Wait()
	if c.dir != nil {
		_ = c.dir.Close()
	}
}

func (c *control) serve() {
	defer c.peers.Done()
	slots := make(chan struct{}, controlPeers)
	for {
		conn, err := c.l.Accept()
		if err != nil {
			if c.ctx.Err() != nil {
				return
			}
			select { // too many open files: it passes
			case <-c.ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		slots <- struct{}{}
		c.peers.Add(1)
		go func() {
			defer func() { <-slots; c.peers.Done() }()
			c.answer(conn)
		}()
	}
}

func (c *control) answer(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(controlTimeout))
	stop := context.AfterFunc(c.ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	line, err := bufio.NewReaderSize(conn, 512).ReadSlice('\n')
	if err != nil {
		return
	}
	var req request
	var ans answer
	if err := json.Unmarshal(line, &req); err != nil {
		ans.Error = err.Error()
	} else {
		ans = c.do(req)
	}
	_ = json.NewEncoder(conn).Encode(ans)
}

func (c *control) do(req request) answer {
	switch req.Op {
	case opStats:
		st := c.w.Stats()
		return answer{Last: st.Last, Stats: &st}
	case opRotate:
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.rotated.IsZero() && time.Since(c.rotated) < rotateInterval {
			return answer{Last: c.served}
		}
		ctx, cancel := context.WithTimeout(c.ctx, controlTimeout)
		defer cancel()
		c.w.mu.Lock()
		last := c.w.nextID - 1
		c.w.mu.Unlock()
		if err := c.w.Rotate(ctx); err != nil {
			return answer{Error: err.Error()}
		}
		c.rotated, c.served = time.Now(), last
		return answer{Last: last}
	}
	return answer{Error: fmt.Sprintf("unknown request %q", req.Op)}
}

// ask sends one request to the spool's recorder.
func ask(ctx context.Context, dir, op string) (answer, error) {
	var ans answer
	path, d, err := socketPath(dir)
	if err != nil {
		return ans, err
	}
	if d != nil {
		defer d.Close()
	}
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return ans, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	if err := json.NewEncoder(conn).Encode(request{op}); err != nil {
		return ans, err
	}
	if err := json.NewDecoder(conn).Decode(&ans); err != nil {
		return ans, err
	}
	if ans.Error != "" {
		return ans, errors.New(ans.Error)
	}
	return ans, nil
}

// LiveStats asks the process that records into the spool for its state. Without a living recorder it
// returns fs.ErrNotExist.
func LiveStats(ctx context.Context, dir string) (Stats, error) {
	held, _, err := lockHeld(dir)
	if err != nil {
		return Stats{}, err
	}
	if !held {
		return Stats{}, fmt.Errorf("recorder of %s: %w", dir, fs.ErrNotExist)
	}
	ans, err := ask(ctx, dir, opStats)
	if err != nil {
		return Stats{}, fmt.Errorf("recorder of %s: %w", dir, err)
	}
	if ans.Stats == nil {
		return Stats{}, fmt.Errorf("recorder of %s: it did not tell", dir)
	}
	return *ans.Stats, nil
}
