package chaos

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
)

// Picture draws what the processes used over the run, as SVG: a chart for each resource, and one for connections. A
// line has a gap where its process was another one.
func (r *Report) Picture() []byte {
	const (
		width, height = 1000, 180 // of a chart
		left, top     = 60, 30
		gap           = 50
	)
	colours := []string{"#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#333333"} // told apart by everybody
	type chart struct {
		name string
		of   func(sample) float64
		sets map[string][]sample
	}
	var charts []chart
	for _, res := range resources {
		charts = append(charts, chart{res.name, res.of, r.run.watch.samples})
	}
	charts = append(charts, chart{"connections to RabbitMQ and PostgreSQL", func(s sample) float64 { return s.files },
		map[string][]sample{"all": r.run.watch.links}})
	end := 1.0
	for _, s := range r.run.watch.links {
		end = max(end, s.at.Seconds())
	}
	var b bytes.Buffer
	total := top + len(charts)*(height+gap)
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", left+width+20, total)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	for i, c := range charts {
		y0 := top + i*(height+gap) + height // of zero
		most := 1.0
		for _, samples := range c.sets {
			for _, s := range samples {
				most = max(most, c.of(s))
			}
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" font-weight="bold">%s</text>`+"\n", left, y0-height-8, c.name)
		fmt.Fprintf(&b, `<path d="M%d %dV%dH%d" fill="none" stroke="#999"/>`+"\n", left, y0-height, y0, left+width)
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%.0f</text><text x="%d" y="%d" text-anchor="end">0</text>`+"\n", left-4, y0-height+10, most, left-4, y0)
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%.0f s</text>`+"\n", left+width, y0+14, end)
		for k, name := range slices.Sorted(maps.Keys(c.sets)) {
			colour := colours[k%len(colours)]
			fmt.Fprintf(&b, `<text x="%d" y="%d" fill="%s">%s</text>`+"\n", left+300+k*90, y0-height-8, colour, name)
			fmt.Fprintf(&b, `<path fill="none" stroke="%s" d="`, colour)
			start := -1
			for _, s := range c.sets[name] {
				move := "L"
				if s.start != start {
					move, start = "M", s.start
				}
				fmt.Fprintf(&b, "%s%.1f %.1f", move, float64(left)+s.at.Seconds()/end*width, float64(y0)-c.of(s)/most*height)
			}
			b.WriteString("\"/>\n")
		}
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}
