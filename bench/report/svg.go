package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// style is the style of all pictures. They have a background of their own, so that they can be read wherever they are shown.
const style = `<style>
text{font:13px system-ui,sans-serif;fill:#24292f}.small{font-size:11px;fill:#57606a}.bold{font-weight:600}
.ground{fill:#fff}.grid{stroke:#d8dee4}.ceiling{fill:#c3cbd4}.mark{stroke:#8c959f;stroke-dasharray:4 3}
.s0{--c:#0969da}.s1{--c:#bc4c00}.s2{--c:#1a7f37}.s3{--c:#8250df}
.fill{fill:var(--c)}.line{stroke:var(--c);fill:none;stroke-width:2}.range{stroke:var(--c);opacity:.5}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#9198a1}.ground{fill:#0d1117}.grid{stroke:#30363d}.ceiling{fill:#484f58}
.s0{--c:#4493f8}.s1{--c:#f0883e}.s2{--c:#3fb950}.s3{--c:#ab7df8}}
</style>
`

// canvas is an SVG under construction.
type canvas struct{ bytes.Buffer }

func newCanvas(width, height int, title string) *canvas {
	c := new(canvas)
	fmt.Fprintf(c, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img"><title>%s</title>`+"\n",
		width, height, width, height, html.EscapeString(title))
	c.WriteString(style)
	fmt.Fprintf(c, `<rect class="ground" width="%d" height="%d" rx="6"/>`+"\n", width, height)
	return c
}

func (c *canvas) text(x, y float64, class, anchor, text string) {
	fmt.Fprintf(c, `<text x="%.0f" y="%.0f" class="%s" text-anchor="%s">%s</text>`+"\n", x, y, class, anchor, html.EscapeString(text))
}

func (c *canvas) bar(x, y, width, height float64, class string) {
	fmt.Fprintf(c, `<rect x="%.0f" y="%.0f" width="%.1f" height="%.0f" rx="2" class="%s"/>`+"\n", x, y, width, height, class)
}

func (c *canvas) line(x1, y1, x2, y2 float64, class string) {
	fmt.Fprintf(c, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" class="%s"/>`+"\n", x1, y1, x2, y2, class)
}

func (c *canvas) end() []byte {
	c.WriteString("</svg>\n")
	return c.Bytes()
}

// bars returns the picture of the short lines: each figure's bar over its ceiling's. All ceilings are equally long, because
// their units can't be compared.
func bars(results []result) []byte {
	const left, room, rowHeight, top = 330.0, 290.0, 40.0, 46.0
	type shown struct {
		line
		result
	}
	var rows []shown
	most := 1.0
	for _, l := range lines {
		i := slices.IndexFunc(results, func(r result) bool { return r.name == l.name })
		if l.short && l.ceiling != "" && i >= 0 {
			rows = append(rows, shown{l, results[i]})
			most = max(most, results[i].values["ratio"])
		}
	}
	c := newCanvas(860, int(top+rowHeight*float64(len(rows)))+12, "Each figure beside its ceiling")
	c.text(16, 26, "bold", "start", "Each figure beside its ceiling")
	c.bar(left, 17, 10, 10, "s0 fill")
	c.text(left+16, 26, "small", "start", "Millrace")
	c.bar(left+80, 17, 10, 10, "ceiling")
	c.text(left+96, 26, "small", "start", "what the machine reaches without it, in the same run")
	c.text(846, 26, "small", "end", "ratio")
	for i, r := range rows {
		y := top + rowHeight*float64(i)
		unit := r.figure()
		c.text(16, y+13, "", "start", r.what)
		c.text(16, y+28, "small", "start", strings.ReplaceAll(r.ceiling, "`", ""))
		figure, ceiling := r.values["ratio"]/most*room, room/most
		c.bar(left, y+4, figure, 11, "s0 fill")
		c.bar(left, y+18, ceiling, 11, "ceiling")
		c.text(left+room+8, y+14, "", "start", number(r.values[unit])+" "+unit)
		c.text(left+room+8, y+28, "small", "start", number(r.values["ceiling-"+unit])+" "+unit)
		c.text(846, y+20, "bold", "end", fmt.Sprintf("%.2f", r.values["ratio"]))
	}
	return c.end()
}

// point is a measured value, with the least and the most of its rounds.
type point struct{ x, y, low, high float64 }

// curve is a line of points, by ascending x.
type curve struct {
	name   string
	points []point
}

// panel is a coordinate system of curves. Those of one picture share their x.
type panel struct {
	unit   string
	log    bool
	curves []curve
}

// spoken replaces a benchmark's unit by what people read.
var spoken = strings.NewReplacer("-ms", ", ms", "-MiB", ", MiB", "-", " ")

// draw returns the picture of panels side by side. mark is a value of x that a line marks in each panel, as the default.
func draw(title, xName string, panels []panel, mark float64) []byte {
	const width, height, left, top, bottom, right = 360.0, 250.0, 58.0, 76.0, 44.0, 14.0
	c := newCanvas(int(width)*len(panels), int(height+top+bottom), title)
	c.text(16, 26, "bold", "start", title)
	var names []string
	for _, p := range panels {
		for _, cv := range p.curves {
			if !slices.Contains(names, cv.name) {
				names = append(names, cv.name)
			}
		}
	}
	at := 16.0
	for i, name := range names {
		if len(names) == 1 {
			break
		}
		c.bar(at, 37, 10, 10, fmt.Sprintf("s%d fill", i))
		c.text(at+15, 46, "small", "start", name)
		at += 32 + 6*float64(len(name))
	}
	for i, p := range panels {
		x0, y0 := width*float64(i)+left, top
		w, h := width-left-right, height-10
		var xs, ys []float64
		for _, cv := range p.curves {
			for _, pt := range cv.points {
				xs, ys = append(xs, pt.x), append(ys, pt.low, pt.high)
			}
		}
		if len(xs) == 0 {
			continue
		}
		xLow, xHigh := math.Log(slices.Min(xs)), math.Log(slices.Max(xs))
		toX := func(x float64) float64 { return x0 + w*(math.Log(x)-xLow)/max(xHigh-xLow, 1e-9) }
		ticks := linearTicks(slices.Max(ys))
		toY := func(y float64) float64 { return y0 + h*(1-y/ticks[len(ticks)-1]) }
		if p.log {
			ticks = logTicks(slices.Min(ys), slices.Max(ys))
			low, high := math.Log(ticks[0]), math.Log(ticks[len(ticks)-1])
			toY = func(y float64) float64 { return y0 + h*(1-(math.Log(y)-low)/(high-low)) }
		}
		c.text(x0-44, y0-10, "small", "start", spoken.Replace(p.unit))
		for _, t := range ticks {
			c.line(x0, toY(t), x0+w, toY(t), "grid")
			c.text(x0-6, toY(t)+4, "small", "end", short(t))
		}
		slices.Sort(xs)
		xs = slices.Compact(xs)
		before := math.Inf(-1)
		for _, x := range xs {
			if toX(x)-before > 30 { // labels must not touch
				before = toX(x)
				c.text(before, y0+h+16, "small", "middle", short(x))
			}
		}
		c.text(x0+w/2, y0+h+34, "small", "middle", xName)
		if mark >= xs[0] && mark <= xs[len(xs)-1] {
			c.line(toX(mark), y0, toX(mark), y0+h, "mark")
			c.text(toX(mark)+4, y0+10, "small", "start", "default")
		}
		for _, cv := range p.curves {
			class := fmt.Sprintf("s%d", slices.Index(names, cv.name))
			path := ""
			for _, pt := range cv.points {
				path += fmt.Sprintf(" %.1f,%.1f", toX(pt.x), toY(pt.y))
				c.line(toX(pt.x), toY(pt.low), toX(pt.x), toY(pt.high), class+" range")
				fmt.Fprintf(c, `<circle cx="%.1f" cy="%.1f" r="3" class="%s fill"/>`+"\n", toX(pt.x), toY(pt.y), class)
			}
			fmt.Fprintf(c, `<polyline points="%s" class="%s line"/>`+"\n", path[1:], class)
		}
	}
	return c.end()
}

// linearTicks returns round numbers from 0 to no less than high.
func linearTicks(high float64) []float64 {
	step := math.Pow(10, math.Floor(math.Log10(max(high, 1e-9))))
	for high/step < 4 {
		step /= 2
	}
	ticks := []float64{0}
	for ticks[len(ticks)-1] < high {
		ticks = append(ticks, step*float64(len(ticks)))
	}
	return ticks
}

// logTicks returns powers of ten from about low to about high, and, unless the range is wide, twice and five times such powers.
func logTicks(low, high float64) []float64 {
	steps := []float64{1, 2, 5}
	if high/low > 500 {
		steps = steps[:1]
	}
	var all []float64
	for e := math.Floor(math.Log10(low)); e <= math.Ceil(math.Log10(high)); e++ {
		for _, s := range steps {
			all = append(all, s*math.Pow(10, e))
		}
	}
	first, last := 0, len(all)-1
	for first+1 < len(all) && all[first+1] <= low*(1+1e-9) {
		first++
	}
	for last > first+1 && all[last-1] >= high*(1-1e-9) {
		last--
	}
	return all[first : last+1]
}

// short returns a number as an axis has it: 50k, 2M, 64Ki.
func short(v float64) string {
	if n := int(v); n >= 1024 && n&(n-1) == 0 {
		if n >= 1<<20 {
			return fmt.Sprintf("%dMi", n>>20)
		}
		return fmt.Sprintf("%dKi", n>>10)
	}
	for _, s := range []struct {
		unit string
		size float64
	}{{"M", 1e6}, {"k", 1e3}} {
		if v >= s.size {
			return fmt.Sprintf("%.3g%s", v/s.size, s.unit)
		}
	}
	return fmt.Sprintf("%.3g", v)
}
