package searches_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace/query"
	"millrace/query/searches"
)

// parse reads a text whose folder is that of the test.
func parse(t testing.TB, text string) (*searches.File, error) {
	t.Helper()
	return searches.Parse([]byte(text), t.TempDir(), query.SearchTerms())
}

func TestAFileIsReadWhole(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := searches.Parse([]byte(`
page: https://logs.example.com/
receivers:
  - name: oncall
    alertmanager: [http://am-1:9093, "http://am-2:9093/prefix/"]
  - name: chat
    webhook: https://user:password@chat.example.com/hooks/1?token=t
    secret_file: secret
searches:
  - name: checkout errors
    q: service:checkout level:error
    when: count > 50, p95(duration_ms) >= 2.5 in 5m
    by: [service, http.status]
    for: 2m
    keep_firing: 1h30m
    delay: 1m
    every: 30s
    groups: 7
    labels: {severity: page}
    summary: The checkout fails
    tell: [oncall, chat]
  - name: gone
    when: absent in 10m
    by: service
    remember: 2d
  - {name: patterns, q: "level:error", when: new pattern in 10m, field: msg, count: false}
  - {name: counted, q: password}
`), dir, query.SearchTerms())
	if err != nil {
		t.Fatal(err)
	}
	if f.Page != "https://logs.example.com" || len(f.Receivers) != 2 || len(f.Searches) != 4 {
		t.Fatalf("got %+v", f)
	}
	if am, chat := f.Receivers[0], f.Receivers[1]; len(am.Alertmanagers) != 2 || string(am.Alertmanagers[1]) != "http://am-2:9093/prefix" ||
		string(chat.Secret) != "0123456789abcdef" || chat.Webhook.String() != "https://chat.example.com" || strings.Contains(chat.Secret.String(), "0123") {
		t.Errorf("receivers: %v, %v, %v", am.Alertmanagers, chat.Webhook, chat.Secret)
	}
	s := f.Searches[0]
	if s.Condition.Window != 5*time.Minute || s.For != 2*time.Minute || s.Keep != 90*time.Minute || s.Delay != time.Minute || s.Every != 30*time.Second || s.Groups != 7 || s.Line != 10 || !s.Count {
		t.Errorf("got %+v, %+v", s, s.Condition)
	}
	route, p := s.Parameters(time.UnixMilli(1000), time.UnixMilli(2000))
	if got, want := route+"?"+p.Encode(), "/logs/stats?by=service%2Chttp.status&calc=count%2Cp95%28duration_ms%29&clock=time&from=1000&having=count+%3E+50%2C+p95%28duration_ms%29+%3E%3D+2.5&limit=7&order=-count&q=service%3Acheckout+level%3Aerror&to=2000"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !f.Searches[3].CountsAlone() || f.Searches[2].Count {
		t.Error("a search without a condition is counted alone, and count: false is not counted")
	}
	for _, empty := range []string{"", "# nothing\n", "---\n", "searches:\n", "searches: []\nreceivers:\n"} {
		if f, err := parse(t, empty); err != nil || len(f.Searches) != 0 {
			t.Errorf("%q: got %v, %v", empty, f, err)
		}
	}
}

func TestAMistakeIsToldWithItsLine(t *testing.T) {
	const search = "searches:\n  - name: a\n    q: level:error\n"
	for name, c := range map[string]struct {
		text string
		line int
		want string
	}{
		"no YAML":                    {"searches:\n  - name: [a\n", 0, "is no YAML"},
		"a tab":                      {"searches:\n\t- name: a\n", 2, "is no YAML"},
		"two documents":              {"searches: []\n---\nsearches: []\n", 0, "second document"},
		"no mapping":                 {"- a\n", 1, "the file: takes keys with values"},
		"an unknown key":             {"searches: []\nserches: []\n", 2, `unknown key "serches"; takes page, receivers, searches`},
		"a key twice":                {"searches: []\nsearches: []\n", 2, `the key "searches" is there twice`},
		"a merge":                    {"searches:\n  - <<: {name: b}\n    name: a\n", 2, `unknown key "<<"`},
		"no list":                    {"searches: {name: a}\n", 1, "searches: takes a list"},
		"no name":                    {"searches:\n  - q: a\n", 2, "has no name"},
		"a name of other characters": {"searches:\n  - name: \"a\\nb\"\n", 2, `got "a\nb", takes letters`},
		"a name twice":               {"searches:\n  - name: a\n  - name: a\n", 3, "the name is taken"},
		"a query":                    {"searches:\n  - name: a\n    q: (level:error\n", 3, "search a: q: "},
		"no window":                  {search + "    when: count > 5\n", 4, "takes comparisons of figures with a window"},
		"a wrong window":             {search + "    when: count > 5 in 1.5s\n", 4, `got the window "1.5s"`},
		"no figure":                  {search + "    when: counts > 5 in 1m\n", 4, "is no figure"},
		"no comparison":              {search + "    when: count in 1m\n", 4, "has no comparison"},
		"count without effect":       {search + "    when: count = 0 in 1m\n    by: service\n", 4, "takes absent in 1m"},
		"a field":                    {search + "    when: count > 0 in 1m\n    by: \"a:b\"\n", 2, "by: "},
		"two fields of one label":    {search + "    when: count > 0 in 1m\n    by: [a.b, a_b]\n", 5, "the label of the field"},
		"a field of a label":         {search + "    when: count > 0 in 1m\n    by: severity\n    labels: {severity: page}\n", 5, "one of labels"},
		"a label":                    {search + "    when: count > 0 in 1m\n    labels:\n      a-b: c\n", 6, `got "a-b"`},
		"the label of the name":      {search + "    when: count > 0 in 1m\n    labels: {alertname: c}\n", 5, "set by itself"},
		"no condition":               {search + "    for: 5m\n", 4, "for: takes effect with when alone"},
		"no receiver":                {search + "    when: count > 0 in 1m\n    tell: chat\n", 5, `no receiver "chat"`},
		"a duration":                 {search + "    when: count > 0 in 1m\n    every: 500ms\n", 5, `got "500ms", takes whole seconds`},
		"a clock":                    {search + "    when: count > 0 in 1m\n    clock: wall\n", 5, "takes time or inserted_at"},
		"groups":                     {search + "    when: count > 0 in 1m\n    groups: 5000\n", 5, "from 1 to 1000"},
		"groups of a pattern":        {search + "    when: new pattern in 1m\n    by: service\n", 5, "a new pattern has no groups"},
		"too short a memory":         {search + "    when: absent in 1h\n    by: service\n    remember: 30m\n", 2, "takes more than the window, 1h"},
		"a receiver of nothing":      {"receivers:\n  - name: chat\n", 2, "takes one of alertmanager, webhook"},
		"a receiver of two":          {"receivers:\n  - name: chat\n    webhook: http://a\n    alertmanager: http://b\n", 2, "takes one of alertmanager, webhook"},
		"no URL":                     {"receivers:\n  - name: chat\n    webhook: chat.example.com/secret\n", 3, "begins with none of http://, https://"},
		"a short secret":             {"receivers:\n  - name: chat\n    webhook: http://a\n    secret: short-one\n", 4, "a secret of 16 to 1024 characters"},
		"no file of a secret":        {"receivers:\n  - name: chat\n    webhook: http://a\n    secret_file: /no/such/file\n", 4, "no such file"},
		"a page":                     {"page: logs.example.com\n", 1, "page: takes where people open the page"},
		"a byte":                     {"page: http://a\n# \xff\n", 2, "no UTF-8"},
		"an alias":                   {"searches:\n  - &a {name: a}\n  - *a\n", 3, "the name is taken"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse(t, c.text)
			var mistakes searches.Mistakes
			if !errors.As(err, &mistakes) {
				t.Fatalf("got %v, want mistakes", err)
			}
			if !strings.Contains(err.Error(), c.want) || c.line > 0 && mistakes[0].Line != c.line {
				t.Errorf("got line %d, %v; want line %d, %s", mistakes[0].Line, err, c.line, c.want)
			}
			for _, secret := range []string{"example.com/secret", "short-one"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the error repeats a secret: %v", err)
				}
			}
		})
	}
}

// TestAllMistakesAreTold has more than one, in order of their lines.
func TestAllMistakesAreTold(t *testing.T) {
	_, err := parse(t, "searches:\n  - name: a\n    when: x in 1m\n  - name: b\n    when: y in 1m\n    every: z\n")
	if got, want := err.Error(), `line 3: search a: when: having: "x" has no comparison`; !strings.HasPrefix(got, want) || !strings.Contains(got, "line 5: ") || !strings.Contains(got, "line 6: ") {
		t.Errorf("got %s", got)
	}
}

// FuzzParse has nothing panic or hang, and mistakes name a line of the file.
func FuzzParse(f *testing.F) {
	f.Add("page: http://a\nreceivers:\n  - {name: a, webhook: http://b, secret: 0123456789abcdef}\nsearches:\n  - {name: b, q: c, when: count > 5 in 1m, by: [d], tell: a}\n")
	f.Add("searches:\n  - &a {name: a, labels: &b {c: *a}}\n")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "_file") {
			return // no file of this machine is to be read
		}
		_, err := searches.Parse([]byte(text), t.TempDir(), query.SearchTerms())
		var mistakes searches.Mistakes
		if err != nil && !errors.As(err, &mistakes) {
			t.Fatalf("got %T, want mistakes", err)
		}
		for _, m := range mistakes {
			if m.Line < 0 || m.Line > strings.Count(text, "\n")+strings.Count(text, "\r")+strings.Count(text, "\u0085")+strings.Count(text, "\u2028")+strings.Count(text, "\u2029")+2 || m.Reason == "" {
				t.Errorf("line %d, %q", m.Line, m.Reason)
			}
		}
	})
}
