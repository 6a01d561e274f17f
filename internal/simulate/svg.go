// SPDX-License-Identifier: Apache-2.0

package simulate

import (
	"fmt"
	"math"
	"strings"
)

// Sizes of the drawing, in its own units.
const (
	svgWidth, svgPanel = 760, 120
	svgLeft, svgRight  = 62, 18
	svgTop, svgGap     = 34, 48
	svgPoints          = 720 // most of a curve
	svgPlot            = svgWidth - svgLeft - svgRight
	mega, mebi         = 1e6, 1 << 20
	svgStyle           = `<style>text{font:12px system-ui,sans-serif;fill:#1f2328}.h{font-weight:600}.n{fill:#59636e}.b{fill:#fff}.g{stroke:#d1d9e0}` +
		`.q{fill:#eaeef2}polyline{fill:none;stroke:#0969da;stroke-width:1.5;stroke-linejoin:round}.l{stroke:#d1242f;stroke-dasharray:5 4}` +
		`@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.n{fill:#9198a1}.b{fill:#0d1117}.g{stroke:#3d444d}.q{fill:#21262d}polyline{stroke:#4493f8}.l{stroke:#f85149}}</style>`
)

// panel is one curve over the simulated time.
type panel struct {
	title string
	unit  float64 // what the axis counts in
	limit float64 // drawn as a line if it is not 0
	value func(Sample) float64
}

// SVG draws rate, directory and memory over the simulated time.
func (r *Result) SVG() []byte {
	points := r.Samples
	if n := len(points); n > 1 {
		points = points[:n-1] // the last one is short
	}
	if len(points) > svgPoints {
		points = (&Result{Hours: r.Hours, Samples: points}).Parts(svgPoints)
	}
	panels := []panel{
		{"million events stored a second", mega, 0, func(s Sample) float64 { return s.PerSecond }},
		{fmt.Sprintf("size of the directory, MiB (limit %.0f MiB, %.3g h)", float64(r.MaxBytes)/mebi, r.MaxAge), mebi, float64(r.MaxBytes), func(s Sample) float64 { return float64(s.Directory) }},
		{"anonymous memory of the recorder, MiB", mebi, 0, func(s Sample) float64 { return float64(s.Anon) }},
	}
	height := svgTop + len(panels)*(svgPanel+svgGap) + 4
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img">`, svgWidth, height)
	fmt.Fprintf(&b, "<title>%.3g h of traffic, %d events, recorded in %.0f s</title>%s\n", r.Hours, r.Events, r.Seconds, svgStyle)
	fmt.Fprintf(&b, `<rect class="b" width="%d" height="%d" rx="6"/>`+"\n", svgWidth, height)
	x := func(hours float64) float64 { return svgLeft + math.Min(hours/r.Hours, 1)*svgPlot }
	for i, p := range panels {
		p.draw(&b, points, x, svgTop+i*(svgPanel+svgGap), r.Hours)
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

func (p *panel) draw(b *strings.Builder, points []Sample, x func(float64) float64, top int, hours float64) {
	most := p.limit
	for _, s := range points {
		most = math.Max(most, p.value(s))
	}
	step := niceStep(most / p.unit / 3)
	scale := step * math.Max(math.Ceil(most/p.unit/step*1.02), 1) // of the whole axis
	y := func(v float64) float64 { return float64(top+svgPanel) - v/p.unit/scale*svgPanel }
	for from := 0; from < len(points); from++ {
		if !points[from].Quiet {
			continue
		}
		to := from
		for to+1 < len(points) && points[to+1].Quiet {
			to++
		}
		fmt.Fprintf(b, `<rect class="q" x="%.1f" y="%d" width="%.1f" height="%d"/>`, x(points[from].Hours), top, x(points[to].Hours)-x(points[from].Hours), svgPanel)
		from = to
	}
	fmt.Fprintf(b, `<text class="h" x="%d" y="%d">%s</text>`+"\n", svgLeft, top-10, p.title)
	for v := 0.0; v <= scale+step/2; v += step {
		at := y(v * p.unit)
		fmt.Fprintf(b, `<path class="g" d="M%d %.1fh%d"/><text class="n" x="%d" y="%.1f" text-anchor="end">%.4g</text>`, svgLeft, at, svgPlot, svgLeft-8, at+4, v)
	}
	hour := niceStep(hours / 8)
	if hours > 12 {
		hour = math.Max(4*math.Round(hours/24), 1)
	}
	for h := 0.0; h <= hours; h += hour {
		fmt.Fprintf(b, `<text class="n" x="%.1f" y="%d" text-anchor="middle">%.4g h</text>`, x(h), top+svgPanel+16, h)
	}
	if p.limit > 0 {
		fmt.Fprintf(b, `<path class="l" d="M%d %.1fh%d"/>`, svgLeft, y(p.limit), svgPlot)
	}
	b.WriteString(`<polyline points="`)
	for _, s := range points {
		fmt.Fprintf(b, "%.1f,%.1f ", x(s.Hours), y(p.value(s)))
	}
	b.WriteString("\"/>\n")
}

// niceStep is the smallest 1, 2 or 5 times a power of ten that is not below v.
func niceStep(v float64) float64 {
	if v <= 0 {
		return 1
	}
	base := math.Pow(10, math.Floor(math.Log10(v)))
	for _, f := range []float64{1, 2, 5} {
		if f*base >= v*(1-1e-9) {
			return f * base
		}
	}
	return 10 * base
}
