// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// column of a table.
type column struct {
	title string
	right bool // numbers stand at the right
	rank  int  // where the terminal is too narrow, columns of the highest rank go first; 0 stays
}

// table is text in columns that fits the width of a terminal: it leaves out columns, highest rank
// first, and cuts lines only when nothing is left to leave out.
type table struct {
	columns []column
	rows    [][]string
}

func (t *table) add(cells ...string) {
	if len(cells) != len(t.columns) {
		panic(fmt.Sprintf("BUG: row of %d cells in a table of %d columns", len(cells), len(t.columns)))
	}
	t.rows = append(t.rows, cells)
}

const gap = "  "

// print writes the table. width 0 is unbounded. It returns how many columns were left out.
func (t *table) print(w io.Writer, width int) (hidden int) {
	widths := make([]int, len(t.columns))
	for i, c := range t.columns {
		widths[i] = utf8.RuneCountInString(c.title)
		for _, r := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(r[i]))
		}
	}
	shown := make([]bool, len(t.columns))
	total := -len(gap)
	for i := range shown {
		shown[i] = true
		total += widths[i] + len(gap)
	}
	for width > 0 && total > width {
		drop := -1
		for i, c := range t.columns {
			if shown[i] && c.rank > 0 && (drop < 0 || c.rank >= t.columns[drop].rank) {
				drop = i
			}
		}
		if drop < 0 {
			break
		}
		shown[drop] = false
		total -= widths[drop] + len(gap)
		hidden++
	}
	line := func(cell func(int) string) {
		var b strings.Builder
		sep := ""
		for i, c := range t.columns {
			if !shown[i] {
				continue
			}
			text := cell(i)
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
			b.WriteString(sep)
			if c.right {
				b.WriteString(pad + text)
			} else {
				b.WriteString(text + pad)
			}
			sep = gap
		}
		text := strings.TrimRight(b.String(), " ")
		if width > 0 && utf8.RuneCountInString(text) > width {
			text = string([]rune(text)[:width-1]) + "…"
		}
		fmt.Fprintln(w, text)
	}
	line(func(i int) string { return strings.ToUpper(t.columns[i].title) })
	for _, r := range t.rows {
		line(func(i int) string { return r[i] })
	}
	return hidden
}

// terminalWidth returns the columns of the terminal that w is, or 0 if it is none.
func terminalWidth(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 80
	}
	return width
}

func isTerminal(w io.Writer) bool { return terminalWidth(w) > 0 }

// printJSON writes v as indented JSON.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// count writes a number with commas between its thousands.
func count(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// bytesText writes a number of bytes with three or four digits and a binary unit.
func bytesText(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	prec := 1
	if f >= 100 {
		prec = 0
	}
	return fmt.Sprintf("%.*f %ciB", prec, f, units[i])
}

// durationText rounds to what a person wants to know.
func durationText(d time.Duration) string {
	switch {
	case d >= 100*time.Second:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(10 * time.Nanosecond).String()
}

// timeText writes a wall clock time with milliseconds, in UTC.
func timeText(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05.000")
}
