// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Result is what a benchmark told about events. What it did not tell, and what does not follow from
// what it told, is absent.
type Result struct {
	EventsPerSecond *float64 `json:"events_per_second,omitempty"`
	NsPerEvent      *float64 `json:"ns_per_event,omitempty"`
	BytesPerEvent   *float64 `json:"bytes_per_event,omitempty"`
	AllocsPerEvent  *float64 `json:"allocs_per_event,omitempty"`
	NsPerOp         *float64 `json:"ns_per_op,omitempty"`
}

// procs is the suffix that go test adds to a name when GOMAXPROCS is not 1.
var procs = regexp.MustCompile(`-\d+$`)

// parse reads benchmark output. Of several runs of one benchmark (-count) the median of each unit
// counts. A name that two packages share is told apart by the package's path within the module.
func parse(text string) map[string]Result {
	type run struct {
		pkg, name string
		units     map[string][]float64
	}
	var runs []*run
	byID := map[string]*run{}
	pkg := ""
	suffixed := true // all names end in -N: it is GOMAXPROCS
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "pkg:":
			pkg = f[1]
		case len(f) >= 4 && len(f)%2 == 0 && strings.HasPrefix(f[0], "Benchmark"):
			if _, err := strconv.ParseUint(f[1], 10, 64); err != nil {
				continue
			}
			suffixed = suffixed && procs.MatchString(f[0])
			r := byID[pkg+" "+f[0]]
			if r == nil {
				r = &run{pkg, f[0], map[string][]float64{}}
				byID[pkg+" "+f[0]] = r
				runs = append(runs, r)
			}
			for i := 2; i < len(f); i += 2 {
				if v, err := strconv.ParseFloat(f[i], 64); err == nil {
					r.units[f[i+1]] = append(r.units[f[i+1]], v)
				}
			}
		}
	}
	packages := map[string]map[string]bool{} // of each name
	for _, r := range runs {
		if suffixed {
			r.name = procs.ReplaceAllString(r.name, "")
		}
		if packages[r.name] == nil {
			packages[r.name] = map[string]bool{}
		}
		packages[r.name][r.pkg] = true
	}
	out := map[string]Result{}
	for _, r := range runs {
		name := r.name
		if len(packages[name]) > 1 {
			name = modulePath(r.pkg) + "." + name
		}
		out[name] = result(r.units)
	}
	return out
}

// modulePath is a package's path without the module's host, owner and name.
func modulePath(pkg string) string {
	if p := strings.SplitN(pkg, "/", 4); len(p) == 4 {
		return p[3]
	}
	return pkg
}

func result(units map[string][]float64) Result {
	get := func(unit string) *float64 {
		v := units[unit]
		if len(v) == 0 {
			return nil
		}
		v = slices.Sorted(slices.Values(v))
		m := (v[(len(v)-1)/2] + v[len(v)/2]) / 2
		return &m
	}
	r := Result{
		EventsPerSecond: get("events/s"),
		NsPerEvent:      get("ns/event"),
		BytesPerEvent:   get("B/event"),
		AllocsPerEvent:  get("allocs/event"),
		NsPerOp:         get("ns/op"),
	}
	switch {
	case r.EventsPerSecond == nil && r.NsPerEvent != nil && *r.NsPerEvent > 0:
		v := 1e9 / *r.NsPerEvent
		r.EventsPerSecond = &v
	case r.NsPerEvent == nil && r.EventsPerSecond != nil && *r.EventsPerSecond > 0:
		v := 1e9 / *r.EventsPerSecond
		r.NsPerEvent = &v
	}
	// How many events an operation handles follows from the two times; so do the allocations of one.
	if allocs := get("allocs/op"); r.AllocsPerEvent == nil && allocs != nil && r.NsPerEvent != nil && r.NsPerOp != nil && *r.NsPerOp > 0 {
		v := *allocs * *r.NsPerEvent / *r.NsPerOp
		r.AllocsPerEvent = &v
	}
	return r
}

func encode(results map[string]Result) ([]byte, error) {
	js, err := json.MarshalIndent(results, "", "  ") // keys come sorted
	return append(js, '\n'), err
}
