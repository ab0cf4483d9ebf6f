package query

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/chromedp/cdproto/input"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"millrace/internal/testenv"
)

// browserWait is the longest wait for something to come true in the browser: far more than it takes, so that only
// what never comes true fails.
const browserWait = time.Minute

// theBrowser is Chromium, which the first test that needs it starts. All tests share it, because a start takes seconds.
var theBrowser struct {
	once sync.Once
	ctx  context.Context
	end  func()
	err  error
}

// newBrowser returns Chromium, headless, for tabs whose storage is their own. If Chromium is not installed, the test skips with a
// pointer. If CI is set it fails instead, unless there is no package of it (Ubuntu has only the snap).
func newBrowser(t testing.TB) context.Context {
	t.Helper()
	path := testenv.FindProgram("chromium", "google-chrome")
	if path == "" {
		if os.Getenv("CI") != "" && exec.Command("apt-cache", "show", "chromium").Run() == nil {
			t.Fatal("Chromium is not installed, and apt has it")
		}
		t.Skip("Chromium is not installed: run make test, or apt-get install chromium")
	}
	theBrowser.once.Do(func() { startBrowser(path) })
	if theBrowser.err != nil {
		t.Fatalf("start %s: %v", path, theBrowser.err)
	}
	return theBrowser.ctx
}

// startBrowser starts the browser that tests share.
func startBrowser(path string) {
	dir, err := os.MkdirTemp("", "millrace-browser-")
	if err != nil {
		theBrowser.err = err
		return
	}
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(path), chromedp.UserDataDir(dir), chromedp.Headless, chromedp.NoFirstRun, chromedp.DisableGPU,
		chromedp.NoSandbox, // root has none; it only ever opens the page under test
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.Flag("disable-dev-shm-usage", true), // containers have little of it
		chromedp.Flag("hide-scrollbars", true),
		chromedp.Env("TZ=Europe/Berlin", "LANG=C.UTF-8"),
	}
	allocator, endAllocator := chromedp.NewExecAllocator(context.Background(), options...)
	browser, endTabs := chromedp.NewContext(allocator)
	theBrowser.ctx = browser
	theBrowser.end = func() {
		endTabs()
		endAllocator() // waits for the process
		_ = os.RemoveAll(dir)
	}
	theBrowser.err = chromedp.Do(browser)
}

// endBrowser ends the browser that tests shared, if one was started.
func endBrowser() {
	if theBrowser.end != nil {
		theBrowser.end()
	}
}

// tab is a tab whose storage is its own. Scripts' errors and violations of the policy fail the test.
type tab struct {
	t    testing.TB
	ctx  context.Context
	base string

	clicks, keys int // what the reader did

	mu       sync.Mutex
	problems []string
}

func newTab(t testing.TB, browser context.Context, base string) *tab {
	t.Helper()
	ctx, end := chromedp.NewContext(browser, chromedp.WithNewBrowserContext())
	t.Cleanup(end)
	p := &tab{t: t, ctx: ctx, base: base}
	err := chromedp.Listen(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			p.problem("exception: %s %v", e.ExceptionDetails.Text, e.ExceptionDetails.Exception)
		case *runtime.EventConsoleAPICalled:
			p.problem("console: %v", e.Args) // the page writes nothing there
		case *cdplog.EventEntryAdded:
			// A request that is refused is for the page to deal with.
			if e.Entry.Level == cdplog.EntryLevelError && e.Entry.Source != cdplog.EntrySourceNetwork || e.Entry.Source == cdplog.EntrySourceSecurity {
				p.problem("%s: %s %s", e.Entry.Source, e.Entry.Text, e.Entry.URL)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, problem := range p.problems {
			t.Error(problem)
		}
	})
	if _, err := chromedp.Call(ctx, cdplog.Enable, struct{}{}); err != nil {
		t.Fatal(err)
	}
	p.do(chromedp.EmulateViewport(1440, 900))
	return p
}

func (p *tab) problem(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.problems = append(p.problems, fmt.Sprintf(format, args...))
}

func (p *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, browserWait)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.t.Fatal(err)
	}
}

// eval returns the value of an expression.
func eval[T any](p *tab, expression string) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, browserWait)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

func (p *tab) open(address string) {
	p.t.Helper()
	p.do(chromedp.Navigate(p.base + address))
}

// until waits until an expression is true. While it throws it is not true yet: the page may be about to load. If it fails, it shows
// what the page says.
func (p *tab) until(expression string) {
	p.t.Helper()
	var last error
	for deadline := time.Now().Add(browserWait); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithDeadline(p.ctx, deadline)
		holds, err := chromedp.Run(ctx, chromedp.Evaluate[bool]("Boolean("+expression+")"))
		cancel()
		if holds && err == nil {
			return
		}
		last = err
	}
	p.t.Fatalf("not true within %s: %s (%v)\n%s\n%.2000s", browserWait, expression, last, eval[string](p, "location.href"), eval[string](p, "document.body.innerText"))
}

// is waits for the expression to have a value.
func (p *tab) is(expression string, want any) {
	p.t.Helper()
	text, err := json.Marshal(want)
	if err != nil {
		p.t.Fatal(err)
	}
	p.until(fmt.Sprintf("JSON.stringify(%s) === JSON.stringify(%s)", expression, text))
}

// click clicks in the middle of an element, once it is shown and nothing is on its way that would draw the rows anew. A click on
// an element that is gone by then is lost, and so is the id that the browser's protocol has for it.
func (p *tab) click(selector string) {
	p.t.Helper()
	p.clickOn(fmt.Sprintf("document.querySelector(%q)", selector))
}

// clickOn is click for the element that an expression returns.
func (p *tab) clickOn(element string) {
	p.t.Helper()
	p.until(fmt.Sprintf(`!document.querySelector(".loading") && (%s)?.checkVisibility()`, element))
	at := eval[struct{ X, Y float64 }](p, fmt.Sprintf(`(() => {
		const e = %s;
		e.scrollIntoView({ block: "nearest" });
		const { x, y, width, height } = e.getBoundingClientRect();
		return { X: x + width / 2, Y: y + height / 2 };
	})()`, element))
	p.clicks++
	p.do(chromedp.MouseClickXY(at.X, at.Y))
}

// choose has a list of choices at a value, as two clicks do.
func (p *tab) choose(id, value string) {
	p.t.Helper()
	p.until(fmt.Sprintf("[...document.getElementById(%q).options].some((o) => o.value === %q)", id, value))
	p.clicks += 2
	eval[chromedp.Void](p, fmt.Sprintf(`{ const list = document.getElementById(%q); list.value = %q; list.dispatchEvent(new Event("change", { bubbles: true })); }`, id, value))
}

// write puts a text where the focus is.
func (p *tab) write(text string) {
	p.t.Helper()
	p.keys += utf8.RuneCountInString(text)
	if _, err := chromedp.Call(p.ctx, input.InsertText, input.InsertTextParams{Text: text}); err != nil {
		p.t.Fatal(err)
	}
}

// tabTo presses Tab until the focus is on an element for which an expression in e holds.
func (p *tab) tabTo(expression string) {
	p.t.Helper()
	for range 300 {
		if eval[bool](p, fmt.Sprintf("Boolean(((e) => %s)(document.activeElement))", expression)) {
			return
		}
		p.key(kb.Tab)
	}
	p.t.Fatalf("300 times Tab, and the focus is on nothing with %s", expression)
}

// press types into what has the focus.
func (p *tab) press(keys string) {
	p.t.Helper()
	p.keys += utf8.RuneCountInString(keys)
	p.do(chromedp.KeyEvent(keys))
}

// key presses one key as a command: no character comes of it, as none does of a key whose press the page takes.
func (p *tab) key(name string) {
	p.t.Helper()
	p.keys += utf8.RuneCountInString(name)
	for _, r := range name {
		for _, event := range kb.Encode(r) {
			if event.Type == kb.KeyChar {
				continue
			}
			event.Text, event.UnmodifiedText = "", ""
			if _, err := chromedp.Call(p.ctx, input.DispatchKeyEvent, *event); err != nil {
				p.t.Fatal(err)
			}
		}
	}
}

// search types a query in place of the one that is there.
func (p *tab) search(query string) {
	p.t.Helper()
	p.do(chromedp.Evaluate[chromedp.Void]("document.activeElement.blur()"))
	p.key("/")
	p.is("document.activeElement.id", "q")
	p.write(query)
	p.press("\r")
}

// drag presses the mouse at one part (0 to 1) of an element's width and lets go at another, and waits for the page to be
// at another address.
func (p *tab) drag(selector string, from, to float64) {
	p.t.Helper()
	box := eval[struct{ X, Y, Width, Height float64 }](p, fmt.Sprintf("document.querySelector(%q).getBoundingClientRect().toJSON()", selector))
	address := eval[string](p, "location.href")
	y := box.Y + box.Height/2
	at := func(part float64) float64 { return box.X + part*box.Width }
	p.do(
		chromedp.MouseEvent(chromedp.MouseMoved, at(from), y),
		chromedp.MouseEvent(chromedp.MousePressed, at(from), y, chromedp.ButtonLeft, chromedp.ClickCount(1)),
		chromedp.MouseEvent(chromedp.MouseMoved, at((from+to)/2), y, chromedp.ButtonLeft),
		chromedp.MouseEvent(chromedp.MouseMoved, at(to), y, chromedp.ButtonLeft),
		chromedp.MouseEvent(chromedp.MouseReleased, at(to), y, chromedp.ButtonLeft, chromedp.ClickCount(1)),
	)
	p.until(fmt.Sprintf("location.href !== %q", address))
}

// dragBy presses the mouse in the middle of an element and lets go some pixels to the right.
func (p *tab) dragBy(element string, pixels float64) {
	p.t.Helper()
	at := eval[struct{ X, Y, Width, Height float64 }](p, element+".getBoundingClientRect().toJSON()")
	x, y := at.X+at.Width/2, at.Y+at.Height/2
	p.do(
		chromedp.MouseEvent(chromedp.MouseMoved, x, y),
		chromedp.MouseEvent(chromedp.MousePressed, x, y, chromedp.ButtonLeft, chromedp.ClickCount(1)),
		chromedp.MouseEvent(chromedp.MouseMoved, x+pixels/2, y, chromedp.ButtonLeft),
		chromedp.MouseEvent(chromedp.MouseMoved, x+pixels, y, chromedp.ButtonLeft),
		chromedp.MouseEvent(chromedp.MouseReleased, x+pixels, y, chromedp.ButtonLeft, chromedp.ClickCount(1)),
	)
}

// Expressions for what is shown.
const (
	messages = `[...document.querySelectorAll("#rows .message")].map((e) => e.textContent)`
	total    = `document.getElementById("total").textContent`
	errorBar = `[...document.querySelectorAll("#q-error:not([hidden])")].map((e) => e.textContent).join()`
)

func parameter(name string) string {
	return fmt.Sprintf("new URLSearchParams(location.search).get(%q)", name)
}
