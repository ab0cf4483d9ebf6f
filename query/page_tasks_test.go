package query

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/google/go-cmp/cmp"

	"millrace/internal/testenv"
)

// TestTasksOnThePage does what people on call do: on a wide screen, on a phone, and by the keyboard alone. It logs how many clicks and
// keys each task takes, with the letters of what is typed among the keys.
func TestTasksOnThePage(t *testing.T) {
	testenv.Database(t) // no server, no browser
	browser := newBrowser(t)
	f := newFixture(t, nil)
	for _, ahead := range []time.Duration{-24 * time.Hour, 0, time.Hour} {
		partition(t, f.db, time.Now().Add(ahead))
	}
	taskLogs(t, f)
	tasks := []struct {
		name           string
		clicks, byKeys func(*testing.T, *tab)
	}{
		{"why errors rose", whyByClicks, whyByKeys},
		{"follow a trace and go back", traceByClicks, traceByKeys},
		{"20 lines around one", aroundByClicks, aroundByKeys},
		{"p95 by path, slowest first", slowestByClicks, slowestByKeys},
		{"error rate by service", rateByClicks, rateByKeys},
		{"distinct users that saw errors, then by service", usersByClicks, usersByKeys},
		{"a table of four columns, exported", columnsByClicks, columnsByKeys},
		{"live errors, paused", liveByClicks(f), liveByKeys(f)},
	}
	for _, screen := range []string{"1440 px", "390 px", "keyboard alone"} {
		for _, task := range tasks {
			t.Run(screen+"/"+task.name, func(t *testing.T) {
				p := newTab(t, browser, f.base)
				do := task.clicks
				switch screen {
				case "390 px":
					p.do(chromedp.EmulateViewport(390, 844))
				case "keyboard alone":
					do = task.byKeys
				}
				p.open("/")
				p.until(`document.querySelectorAll("#rows li").length >= 100 && document.querySelector("#legend button") && document.querySelector("#field-list summary") && !document.querySelector(".loading")`)
				do(t, p)
				if wide := eval[int](p, "document.documentElement.scrollWidth - document.documentElement.clientWidth"); wide > 0 {
					t.Errorf("the page is %d px wider than the screen", wide)
				}
				if screen == "keyboard alone" && p.clicks > 0 {
					t.Errorf("%d clicks", p.clicks)
				}
				t.Logf("%d clicks, %d keys", p.clicks, p.keys)
			})
		}
	}
}

// taskLogs stores records of two hours, with a new error in the last half an hour, of the service payments.
func taskLogs(t *testing.T, f fixture) {
	t.Helper()
	for i := range 240 {
		at := ago(time.Duration(i)*30*time.Second + 5*time.Second)
		service := []string{"shop", "payments", "auth"}[i%3]
		path := []string{"/cart", "/pay", "/login"}[i%3]
		level, message := "info", fmt.Sprintf("GET %s took %d ms", path, i)
		switch {
		case service == "payments" && i < 60:
			level, message = "error", fmt.Sprintf("charge %d failed: the card provider timed out", 1000+i)
		case i%40 == 3:
			level, message = "error", fmt.Sprintf("no connection to db%d", i%7)
		}
		insert(t, f.db, at, 0, doc(level, message, fmt.Sprintf(`, "service": %q, "http": {"path": %q, "status": %d}, "duration_ms": %d, "trace_id": "t%d", "user": {"id": 10000000000000000%03d}`,
			service, path, map[string]int{"info": 200, "error": 503}[level], map[string]int{"/cart": 10, "/pay": 500, "/login": 40}[path]+i%20, i/4, 100*(i%3)+i/3%8)))
	}
}

const patternsShown = `[...document.querySelectorAll("#pattern-list .pattern")].map((e) => e.textContent)`

// grid is what the table shows: its rows of cells.
const grid = `[...document.querySelectorAll("#grid tbody tr")].map((row) => [...row.children].map((cell) => cell.textContent))`

func whyByClicks(t *testing.T, p *tab) {
	p.clickOn(`[...document.querySelectorAll("#legend button")].find((e) => e.innerText.startsWith("error"))`)
	p.is(parameter("q"), "level:error")
	p.click(`#tabs [value="patterns"]`)
	p.choose("vs", "before")
	p.until(patternsShown + `[0]?.includes("failed: the card provider timed out") && document.querySelector("#pattern-list .new")`)
	p.is(`[...document.querySelectorAll("#pattern-list .change")].map((e) => e.textContent === "new")`, []bool{true, false})
	p.click("#pattern-list .pattern")
	p.is(total, "20")
	p.is(`[...new Set([...document.querySelectorAll("#rows .pair")].map((e) => e.textContent).filter((e) => e.startsWith("service")))]`, []string{"service=payments"})
}

func whyByKeys(t *testing.T, p *tab) {
	p.search("level:error")
	p.is(parameter("q"), "level:error")
	p.press("\x1b") // out of the box
	p.key("3")
	p.until(patternsShown + ".length === 2")
	p.tabTo(`e.id === "vs"`)
	p.key(kb.ArrowDown)
	p.is(parameter("vs"), "before")
	p.until(`document.querySelector("#pattern-list .new")`)
	p.tabTo(`e.className === "pattern"`)
	p.press("\r")
	p.is(total, "20")
}

func traceByClicks(t *testing.T, p *tab) {
	p.click("#rows li:nth-child(9) .line")
	p.until(`document.querySelector(".detail")`)
	trace := eval[string](p, button("trace_id", "Only")+`.title.split(" ").at(-1)`)
	p.clickOn(button("trace_id", "Only"))
	p.is(parameter("q"), trace)
	p.is(`document.querySelectorAll("#rows > li").length`, 4)
	p.clicks++
	eval[chromedp.Void](p, "history.back()")
	p.until(`document.querySelectorAll("#rows > li").length >= 100 && document.querySelector(".detail")`)
}

func traceByKeys(t *testing.T, p *tab) {
	p.key("j")
	p.key("j")
	p.press("\r")
	p.until(`document.querySelector(".detail")`)
	p.tabTo(`e.title?.startsWith("Only logs with trace_id:")`)
	p.press("\r")
	p.is(`document.querySelectorAll("#rows > li").length`, 4)
	p.keys += 2 // Alt and the arrow
	eval[chromedp.Void](p, "history.back()")
	p.until(`document.querySelectorAll("#rows > li").length >= 100`)
}

func aroundByClicks(t *testing.T, p *tab) {
	p.click("#rows li:nth-child(50) .line")
	p.clickOn(`[...document.querySelectorAll(".actions button")].find((e) => e.innerText.trim() === "Around it")`)
	p.until(`document.querySelectorAll(".context.above .row").length === 20 && document.querySelectorAll(".context.below .row").length === 20`)
}

func aroundByKeys(t *testing.T, p *tab) {
	p.key("j")
	p.key("j")
	p.key("c")
	p.until(`document.querySelectorAll(".context.below .row").length === 20`)
}

// slowest is the table of p95 by path, as the records of the last hour have it.
func slowest(t *testing.T, p *tab) {
	p.until(`document.querySelectorAll("#grid tbody tr").length === 3 && document.querySelector("#grid thead").innerText.includes("p95(duration_ms)")`)
	rows := eval[[][]string](p, grid)
	if got := []string{rows[0][0], rows[1][0], rows[2][0]}; !slices.Equal(got, []string{"/pay", "/login", "/cart"}) || !strings.HasPrefix(rows[0][1], "51") {
		t.Errorf("got %v", rows)
	}
}

// tabulate opens the table and has it show a figure of something by groups, by clicks.
func (p *tab) tabulate(figure, of, group string) {
	p.click(`#tabs [value="table"]`)
	p.until(`document.querySelector("#grid tbody tr")`)
	p.clicks += 2
	eval[chromedp.Void](p, `{ const list = document.querySelector(".figure select"); list.value = `+strconv.Quote(figure)+`; list.dispatchEvent(new Event("change")); }`)
	p.click(".figure input")
	p.write(of)
	p.click("#group")
	p.write(group)
	p.press("\r")
}

// tabulateByKeys does what tabulate does, by the keyboard alone. start is the beginning of the figure's name that is typed.
func (p *tab) tabulateByKeys(start, figure, of, group string) {
	p.key("2")
	p.tabTo(`e.getAttribute("aria-label") === "Figure"`)
	p.press(start)
	p.is(`document.querySelector(".figure select").value`, figure)
	p.tabTo(`e.getAttribute("aria-label") === "Of"`)
	p.write(of)
	if group != "" {
		p.tabTo(`e.id === "group"`)
		p.write(group)
	}
	p.press("\r")
}

func slowestByClicks(t *testing.T, p *tab) {
	p.tabulate("p95", "duration_ms", "http.path")
	slowest(t, p)
	p.clickOn(`[...document.querySelectorAll("#every button")].find((e) => e.value === "lines")`)
	p.until(`document.querySelectorAll("#over path:not(.points)").length === 3 && document.querySelector("#over svg").getAttribute("aria-label").startsWith("p95(duration_ms) over time")`)
	p.clickOn(`document.querySelector("#grid tbody button")`)
	p.is(parameter("q"), "http.path:/pay")
	p.until(`document.querySelectorAll("#rows > li").length >= 38 && [...document.querySelectorAll("#rows > li")].every((e) => e.textContent.includes("path=/pay"))`)
}

func slowestByKeys(t *testing.T, p *tab) {
	p.tabulateByKeys("p95", "p95", "duration_ms", "http.path")
	slowest(t, p)
	p.tabTo(`e.closest("#grid tbody")`)
	p.press("\r")
	p.is(parameter("q"), "http.path:/pay")
}

// rates is the table of the share of errors by service.
func rates(t *testing.T, p *tab) {
	p.until(`document.querySelectorAll("#grid tbody tr").length === 3 && document.querySelector("#grid thead").innerText.includes("share(level:error)")`)
	rows := eval[[][]string](p, grid)
	if rows[0][0] != "payments" || !strings.HasPrefix(rows[0][1], "5") || !strings.HasSuffix(rows[0][1], " %") {
		t.Errorf("got %v, want payments first, with about half of its records", rows)
	}
}

func rateByClicks(t *testing.T, p *tab) {
	p.tabulate("share", "level:error", "service")
	rates(t, p)
	p.clickOn(`document.querySelector("#grid thead th button")`) // by service
	p.is(grid+`.map((row) => row[0])`, []string{"auth", "payments", "shop"})
}

func rateByKeys(t *testing.T, p *tab) {
	p.tabulateByKeys("sh", "share", "level:error", "service")
	rates(t, p)
}

// users is the figure of the distinct users that saw errors.
func users(p *tab) {
	p.t.Helper()
	p.is(`[...document.querySelectorAll("#grid thead th")].map((e) => e.innerText.trim().split(" ")[0])`, []string{"uniq(user.id)"})
	p.is(grid, [][]string{{"10"}})
}

// usersByService are the same for each service.
func usersByService(p *tab) {
	p.t.Helper()
	p.is(grid+`.map((row) => row.join(" ")).sort()`, []string{"auth 1", "payments 8", "shop 1"})
	p.is(grid+`[0][0]`, "payments")
}

func usersByClicks(t *testing.T, p *tab) {
	p.clickOn(`[...document.querySelectorAll("#legend button")].find((e) => e.innerText.startsWith("error"))`)
	p.is(parameter("q"), "level:error")
	if eval[bool](p, `!document.getElementById("fields").checkVisibility()`) {
		p.click("#fields-toggle")
	}
	p.until(`!document.getElementById("fields").classList.contains("old")`)
	p.unfold("user.id")
	p.clickOn(`[...document.querySelectorAll(".field-tools button")].find((e) => e.innerText === "Distinct")`)
	users(p)
	p.click("#group")
	p.write("service")
	p.press("\r")
	usersByService(p)
}

func usersByKeys(t *testing.T, p *tab) {
	p.search("level:error")
	p.is(parameter("q"), "level:error")
	p.press("\x1b") // out of the box
	p.tabulateByKeys("d", "uniq", "user.id", "")
	users(p)
	p.tabTo(`e.id === "group"`)
	p.write("service")
	p.press("\r")
	usersByService(p)
}

// live stores errors while a tab follows them: one is shown, and three more wait until the reader goes on. pause, read and goOn
// are what the reader does.
func live(t *testing.T, p *tab, f fixture, pause, read, goOn func()) {
	t.Helper()
	defer f.exec(`DELETE FROM logs WHERE data->>'message' LIKE 'live %'`) // other tasks have counts
	p.until(`document.body.classList.contains("live")`)
	insert(t, f.db, ago(0), 0, doc("error", "live 0", ""), doc("info", "live and well", ""))
	p.until(messages + `[0] === "live 0"`)
	pause()
	insert(t, f.db, ago(0), 10, doc("error", "live 1", ""), doc("error", "live 2", ""), doc("error", "live 3", ""))
	p.until(`document.getElementById("live-state").textContent === "Paused, 3 new"`)
	p.is(messages+`[0]`, "live 0")
	read()
	p.until(`document.querySelector("#rows li:first-child .detail")`)
	p.is(`document.getElementById("live-state").textContent`, "Paused, 3 new")
	goOn()
	p.is(messages+`.slice(0, 4)`, []string{"live 3", "live 2", "live 1", "live 0"})
}

func liveByClicks(f fixture) func(*testing.T, *tab) {
	return func(t *testing.T, p *tab) {
		p.clickOn(`[...document.querySelectorAll("#legend button")].find((e) => e.innerText.startsWith("error"))`)
		p.is(parameter("q"), "level:error")
		p.click("#live")
		live(t, p, f, func() { p.click("#pause") }, func() { p.click("#rows li:first-child .line") }, func() { p.click("#pause") })
	}
}

func liveByKeys(f fixture) func(*testing.T, *tab) {
	return func(t *testing.T, p *tab) {
		p.search("level:error")
		p.is(parameter("q"), "level:error")
		p.press("\x1b") // out of the box
		p.key("l")
		live(t, p, f, func() { p.key("p") }, func() { p.key("j"); p.press("\r") }, func() { p.key("p") })
	}
}

// exported checks the file with four columns of the errors.
func exported(t *testing.T, dir string) {
	t.Helper()
	name, text := download(t, dir, "logs_level-error_*.csv")
	lines := strings.Split(strings.TrimSpace(text), "\r\n")
	if diff := cmp.Diff("time,service,http.path,duration_ms,message", lines[0]); diff != "" || len(lines) < 20 || !strings.Contains(lines[1], `payments,/pay,50`) {
		t.Errorf("%s has %d lines (-want +got):\n%s\n%.300s", name, len(lines), diff, text)
	}
}

func columnsByClicks(t *testing.T, p *tab) {
	dir := p.downloads()
	p.search("level:error")
	p.click("#view")
	p.click("#column")
	p.write("service, http.path, duration_ms, message")
	p.press("\r")
	p.until(`document.querySelectorAll("#rows li:first-child .cell").length === 4`)
	p.press("\x1b")
	p.click("#save")
	p.until(`document.getElementById("save-name").textContent.endsWith(".csv")`)
	p.click("#save-form button[type=submit]")
	exported(t, dir)
}

func columnsByKeys(t *testing.T, p *tab) {
	dir := p.downloads()
	p.search("level:error")
	p.press("\x1b")
	p.key("v")
	p.tabTo(`e.id === "column"`)
	p.write("service, http.path, duration_ms, message")
	p.press("\r")
	p.until(`document.querySelectorAll("#rows li:first-child .cell").length === 4`)
	p.press("\x1b")
	eval[chromedp.Void](p, "document.activeElement.blur()")
	p.key("e")
	p.tabTo(`e.closest("#save-form") && e.type === "submit"`)
	p.press("\r")
	exported(t, dir)
}
