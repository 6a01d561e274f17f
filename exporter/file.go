// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"go.opentelemetry.io/collector/pdata/pmetric"
)

// File writes metrics as OTLP-JSON lines: each collection, or part of a large one, is an ExportMetricsServiceRequest
// in the JSON encoding of OTLP, followed by a line feed. The Collector's file exporter and
// otlpjsonfile receiver write and read the same.
type File struct {
	path string
	mu   sync.Mutex
	w    io.Writer
	f    *os.File // nil for standard output and before Start
	size int64    // of the whole lines written
	enc  pmetric.JSONMarshaler
}

var _ Sink = (*File)(nil)

// NewFile returns a sink that writes to path, which Start creates or empties; "-" is standard
// output.
func NewFile(path string) *File { return &File{path: path} }

// Start opens the file.
func (s *File) Start(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.path {
	case "":
		return &hinted{errors.New("output file has no name"), "write file:PATH, or file:- for standard output"}
	case "-":
		s.w = os.Stdout
		return nil
	}
	f, err := os.Create(s.path)
	if err != nil {
		hint := "name a file in a directory that exists and that you may write to"
		if errors.Is(err, fs.ErrPermission) {
			hint = "choose a file that you may write to, or give the rights"
		}
		// The error of os.Create already names what and where.
		return &hinted{fmt.Errorf("output file: %w", err), hint}
	}
	s.f, s.w, s.size = f, f, 0
	return nil
}

// ConsumeMetrics writes md as one line with one write, so that who follows the file sees whole
// lines. If that fails half way the file is cut back to its last whole line.
func (s *File) ConsumeMetrics(_ context.Context, md pmetric.Metrics) error {
	line, err := s.enc.MarshalMetrics(md)
	if err != nil {
		return fmt.Errorf("encode OTLP-JSON: %w", err)
	}
	line = append(line, '\n')
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.w == nil {
		return fmt.Errorf("output file %s is not open", s.path)
	}
	if _, err := s.w.Write(line); err != nil {
		if s.f != nil && s.f.Truncate(s.size) == nil {
			_, _ = s.f.Seek(s.size, io.SeekStart)
		}
		return &hinted{fmt.Errorf("output file: %w", err), "what was written before is whole; make room and replay the spool"}
	}
	s.size += int64(len(line))
	return nil
}

// Shutdown closes the file and reports what the file system held back until then.
func (s *File) Shutdown(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.f
	s.w, s.f = nil, nil
	if f == nil {
		return nil
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("output file: %w", err)
	}
	return nil
}
