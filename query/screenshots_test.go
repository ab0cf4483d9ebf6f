package query

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"maps"
	"math"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/google/uuid"

	"millrace/internal/frame"
)

var (
	screenshots = flag.Bool("screenshots", false, "make the pictures in screenshots/ anew")
	loghub      = flag.String("loghub", "", "NDJSON of https://github.com/logpai/loghub, a line a record with its `system`, for the pictures of real records")
)

func TestScreenshots(t *testing.T) {
	if !*screenshots {
		t.Skip("make screenshots makes them")
	}
	f, p := pageFixture(t, newBrowser(t), nil)
	shopLogs(f, 9000)
	whole, secondHalf := hadoopLogs(f)
	scheme := func(name string) {
		t.Helper()
		features := []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}}
		if _, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: features}); err != nil {
			t.Fatal(err)
		}
	}
	open := func(address string) {
		t.Helper()
		p.open(address)
		p.until(`document.querySelector("#legend li") && document.querySelector("#field-list summary") && !document.querySelector(".loading") && document.getElementById("progress").hidden`)
	}
	fields := func(names string) {
		t.Helper()
		eval[chromedp.Void](p, `for (const e of document.querySelectorAll("#field-list summary")) if (`+names+`.includes(e.title)) e.click()`)
		p.until(`document.querySelectorAll(".values").length === ` + names + `.length && document.querySelectorAll(".values meter").length > 1 && !document.querySelector(".values .quietly")`)
	}
	at := func(selector string) {
		t.Helper()
		box := eval[struct{ X, Y, Width, Height float64 }](p, fmt.Sprintf("document.querySelector(%q).getBoundingClientRect().toJSON()", selector))
		p.do(chromedp.MouseEvent(chromedp.MouseMoved, box.X+box.Width*0.62, box.Y+box.Height*0.6))
	}

	scheme("light")
	open("/")
	fields(`["level", "service"]`)
	at("#chart")
	p.until(`!document.getElementById("tip").hidden`)
	p.shoot("light.png")

	scheme("dark")
	open("/?q=" + `service:payments%20level:(error%20OR%20warn)&by=message`)
	fields(`["http.status"]`)
	p.click("#rows li:nth-child(3) .line")
	p.until(`document.querySelector(".detail")`)
	eval[chromedp.Void](p, `document.activeElement.blur()`)
	p.shoot("dark.png")

	scheme("light")
	open("/?tab=table&calc=p95(duration_ms),count,share(level:error)&group=service&every=lines&from=now-2h")
	p.until(`document.querySelectorAll("#over path").length > 4 && !document.querySelector(".loading") && document.getElementById("progress").hidden`)
	p.shoot("table.png")
	if whole != "" {
		open("/?" + whole)
		fields(`["Component"]`)
		p.shoot("hadoop.png")
		scheme("dark")
		open("/?tab=patterns&q=-Level:INFO&vs=before&" + secondHalf)
		p.until(`document.querySelectorAll("#pattern-list li").length > 4 && !document.querySelector(".loading") && document.getElementById("progress").hidden`)
		p.shoot("hadoop-patterns.png")
		scheme("light")
	}
	open("/?tab=patterns&q=-level:debug&vs=before")
	p.until(`document.querySelectorAll("#pattern-list li").length > 4 && !document.querySelector(".loading") && document.getElementById("progress").hidden`)
	p.shoot("patterns.png")
	scheme("dark")
	open("/?q=level:error&order=asc&cols=level,service,http.status,message")
	p.click("#rows li:nth-child(5) .line")
	p.key("c")
	p.until(`document.querySelectorAll(".context .row").length === 40`)
	eval[chromedp.Void](p, `{ document.activeElement.blur(); document.querySelector(".row.around > .line").scrollIntoView({ block: "center" }); }`)
	p.shoot("around.png")

	p.do(chromedp.EmulateViewport(390, 844, chromedp.EmulateScale(1.5), chromedp.EmulateMobile, chromedp.EmulateTouch))
	scheme("light")
	open("/?q=-level:debug")
	p.shoot("narrow-light.png")
	scheme("dark")
	open("/?q=level:error")
	p.click("#rows li:nth-child(1) .line")
	p.until(`document.querySelector(".detail")`)
	p.shoot("narrow-dark.png")
}

// shopLogs stores n records of an invented shop over the last two hours, with an outage of its payments.
func shopLogs(f fixture, n int) {
	f.t.Helper()
	random := rand.New(rand.NewPCG(1, 2)) // the same shop in every picture
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	now := time.Now()
	var ids []uuid.UUID
	var docs []string
	for i := range n {
		minutes := 120 * random.Float64()
		outage := math.Abs(minutes-22) < 5
		service := pick("checkout", "checkout", "catalog", "catalog", "catalog", "payments", "auth", "gateway", "gateway")
		level, status, path := "info", 200, pick("/cart", "/orders", "/search", "/products/8123", "/healthz", "/login")
		took := int(math.Exp(1.5 + 2*random.Float64()))
		message := fmt.Sprintf("%s %s %d in %d ms", pick("GET", "GET", "POST"), path, status, took)
		switch chance := random.Float64(); {
		case service == "payments" && (outage && chance < 0.75 || chance < 0.03):
			level, status, path, took = "error", 503, "/charge", 3000+random.IntN(900)
			message = pick("charge failed: the card provider timed out", "charge failed: connection reset by peer", "circuit open, charge refused")
		case chance < 0.012:
			level, status, message = "error", 500, pick("could not take a database connection within 1 s", "unexpected end of JSON input")
		case chance < 0.07 || outage && chance < 0.12:
			level, message = "warn", pick("retrying charge, attempt 2", "slow query", "session cookie expired", "stock is low")
		case chance < 0.25:
			level, message = "debug", pick("cache miss", "cache hit", "token renewed", "pool has 7 idle connections")
		}
		ids = append(ids, idAt(now.Add(-time.Duration(minutes*float64(time.Minute))), i))
		docs = append(docs, fmt.Sprintf(`{"level": %q, "message": %q, "service": %q, "host": "web-%d", "http": {"path": %q, "status": %d}, "duration_ms": %d, `+
			`"trace_id": "%016x", "user": {"id": %d, "plan": %q}, "tags": [%q, "v2.%d"]}`, level, message, service, 1+random.IntN(6), path, status, took,
			random.Uint64(), 1_000_000_000_000_000_000+random.Uint64N(9_000_000), pick("free", "free", "pro"), pick("eu", "us"), random.IntN(4)))
	}
	times := make([]time.Time, len(ids))
	for i, id := range ids {
		times[i] = frame.Time(id)
	}
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = id.String()
	}
	f.exec("INSERT INTO logs (id, inserted_at, data) SELECT i::uuid, t, d::jsonb FROM unnest($1::text[], $2::timestamptz[], $3::text[]) AS r (i, t, d)", texts, times, docs)
}

// hadoopLogs stores the records of Hadoop that loghub has, a cluster that loses its network, at their own times, and returns the
// parameters of their window and of its second half. Without loghub it returns "".
func hadoopLogs(f fixture) (whole, secondHalf string) {
	f.t.Helper()
	if *loghub == "" {
		return "", ""
	}
	file, err := os.Open(*loghub)
	if err != nil {
		f.t.Fatal(err)
	}
	defer file.Close()
	var texts, docs []string
	var times []time.Time
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var record struct{ System, Date, Time string }
		if err := json.Unmarshal(lines.Bytes(), &record); err != nil {
			f.t.Fatal(err)
		}
		if record.System != "Hadoop" {
			continue
		}
		at, err := time.Parse("2006-01-02 15:04:05.000", record.Date+" "+strings.Replace(record.Time, ",", ".", 1))
		if err != nil {
			f.t.Fatal(err)
		}
		texts, times, docs = append(texts, idAt(at, len(docs)).String()), append(times, at), append(docs, lines.Text())
	}
	if err := lines.Err(); err != nil || len(times) == 0 {
		f.t.Fatalf("%s: %d records of Hadoop, %v", *loghub, len(times), err)
	}
	first := slices.MinFunc(times, time.Time.Compare).Truncate(time.Minute)
	last := slices.MaxFunc(times, time.Time.Compare).Truncate(time.Minute).Add(time.Minute)
	partition(f.t, f.db, first)
	f.exec("INSERT INTO logs (id, inserted_at, data) SELECT i::uuid, t, d::jsonb FROM unnest($1::text[], $2::timestamptz[], $3::text[]) AS r (i, t, d)", texts, times, docs)
	window := func(from time.Time) string {
		return url.Values{"from": {from.Format(time.RFC3339)}, "to": {last.Format(time.RFC3339)}, "zone": {"utc"}}.Encode()
	}
	return window(first), window(first.Add(last.Sub(first) / 2).Truncate(time.Minute))
}

// shoot keeps a picture of the tab, in few colours, which is a third of the bytes and looks the same.
func (p *tab) shoot(name string) {
	p.t.Helper()
	shot, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		p.t.Fatal(err)
	}
	full, err := png.Decode(bytes.NewReader(shot))
	if err != nil {
		p.t.Fatal(err)
	}
	var out bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, inFewColours(full)); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("screenshots", name), out.Bytes(), 0o644); err != nil {
		p.t.Fatal(err)
	}
	p.t.Logf("%s: %d KB", name, out.Len()/1024)
}

// inFewColours keeps the 256 commonest colours that differ to the eye, and takes the nearest of them for the others.
func inFewColours(full image.Image) image.Image {
	b := full.Bounds()
	counts := make(map[color.RGBA]int)
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			counts[color.RGBAModel.Convert(full.At(x, y)).(color.RGBA)]++
		}
	}
	common := slices.SortedFunc(maps.Keys(counts), func(a, b color.RGBA) int { return cmp.Compare(counts[b], counts[a]) })
	var palette color.Palette
	for _, c := range common {
		if len(palette) < 256 && !slices.ContainsFunc(palette, func(p color.Color) bool { return alike(c, p.(color.RGBA)) }) {
			palette = append(palette, c)
		}
	}
	index := make(map[color.RGBA]uint8, len(counts))
	for c := range counts {
		index[c] = uint8(palette.Index(c))
	}
	few := image.NewPaletted(b, palette)
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			few.SetColorIndex(x, y, index[color.RGBAModel.Convert(full.At(x, y)).(color.RGBA)])
		}
	}
	return few
}

// alike reports whether two colours are hard to tell apart.
func alike(a, b color.RGBA) bool {
	d := func(x, y uint8) int { return (int(x) - int(y)) * (int(x) - int(y)) }
	return d(a.R, b.R)+d(a.G, b.G)+d(a.B, b.B) < 64
}
