package searches

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"millrace/internal/config"
	"millrace/internal/hotfile"
	"millrace/query/language"
)

const (
	// maxFileBytes and maxSearches bound a file.
	maxFileBytes, maxSearches = 1 << 20, 1000
	// maxNameBytes bounds a name.
	maxNameBytes = 100
	// maxGroups is the most groups of a search that are told apart.
	maxGroups = 1000
	// samples is how many records a message shows of a group.
	samples = 3
)

// Terms reads conditions as GET /logs/stats does. Package query implements it.
type Terms interface {
	// Figures returns the figures that a list of comparisons such as count>100,avg(ms)>5 is about, and what tells whether all comparisons hold for
	// values of these figures. Its error is for people.
	Figures(having string) (figures []string, hold func(values map[string]json.RawMessage) bool, err error)
	// Check returns what is wrong with parameters of a route, for people; nil if nothing is.
	Check(route string, parameters url.Values) error
}

// Mistake is a mistake in a file.
type Mistake = hotfile.Mistake

// Mistakes are all mistakes of a file, by their lines.
type Mistakes []Mistake

func (m Mistakes) Error() string {
	texts := make([]string, 0, mistakesTold)
	for _, one := range m[:min(len(m), mistakesTold)] {
		texts = append(texts, one.Error())
	}
	if n := len(m) - len(texts); n > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", n))
	}
	return strings.Join(texts, "; ")
}

// mistakesTold is how many mistakes an error tells.
const mistakesTold = 5

// parser reads a file and collects its mistakes.
type parser struct {
	terms    Terms
	dir      string // of the file, from which names of files count
	mistakes Mistakes
}

// Parse returns what a text says. dir is the folder that names of files in it count from. The error is of the type Mistakes.
func Parse(text []byte, dir string, terms Terms) (*File, error) {
	p := &parser{terms: terms, dir: dir}
	f := p.file(text)
	if len(p.mistakes) > 0 {
		slices.SortStableFunc(p.mistakes, func(a, b Mistake) int { return cmp.Compare(a.Line, b.Line) })
		return nil, p.mistakes
	}
	return f, nil
}

// wrong notes a mistake.
func (p *parser) wrong(line int, format string, args ...any) {
	p.mistakes = append(p.mistakes, Mistake{Line: line, Reason: fmt.Sprintf(format, args...)})
}

// yamlLine finds the line in an error of the library.
var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(?:could not find expected ':'|.*)$`)

// file reads a whole file.
func (p *parser) file(text []byte) *File {
	if len(text) > maxFileBytes {
		p.wrong(0, "the file has %d bytes, takes at most %d", len(text), maxFileBytes)
		return nil
	}
	if !utf8.Valid(text) {
		p.wrong(1+strings.Count(string(text[:invalidAt(text)]), "\n"), "holds a byte that is no UTF-8")
		return nil
	}
	decoder := yaml.NewDecoder(strings.NewReader(string(text)))
	var document, second yaml.Node
	err := decoder.Decode(&document)
	if err == nil {
		if err = decoder.Decode(&second); err == nil {
			p.wrong(second.Line, "a second document begins: takes one")
			return nil
		}
	}
	f := new(File)
	if errors.Is(err, io.EOF) && document.Kind == 0 {
		return f // an empty file
	}
	if !errors.Is(err, io.EOF) {
		line := 0
		if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
			line, _ = strconv.Atoi(m[1]) // digits or nothing
		}
		p.wrong(line, "is no YAML: %s", strings.TrimPrefix(strings.TrimPrefix(err.Error(), "yaml: "), fmt.Sprintf("line %d: ", line)))
		return nil
	}
	top, ok := p.mapping(document.Content[0], "the file", "page", "receivers", "searches")
	if !ok {
		return f
	}
	if n := top["page"]; n != nil {
		f.Page = strings.TrimRight(p.text(n, "page"), "/")
		if u, err := url.Parse(f.Page); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			p.wrong(n.Line, "page: takes where people open the page, an http:// or https:// URL such as https://logs.example.com")
		}
	}
	receivers := make(map[string]bool)
	for _, n := range p.list(top["receivers"], "receivers") {
		if r := p.receiver(n); r != nil {
			if receivers[r.Name] {
				p.wrong(n.Line, "receiver %s: the name is taken by another one above", r.Name)
			}
			receivers[r.Name] = true
			f.Receivers = append(f.Receivers, r)
		}
	}
	names := make(map[string]bool)
	list := p.list(top["searches"], "searches")
	if len(list) > maxSearches {
		p.wrong(list[maxSearches].Line, "searches: got %d, takes at most %d", len(list), maxSearches)
		return f
	}
	for _, n := range list {
		s := p.search(n, receivers)
		if s == nil {
			continue
		}
		if names[s.Name] {
			p.wrong(n.Line, "search %s: the name is taken by another one above", s.Name)
		}
		names[s.Name] = true
		f.Searches = append(f.Searches, s)
	}
	return f
}

// invalidAt returns where a text stops to be UTF-8.
func invalidAt(text []byte) int {
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return len(text)
}

// aliased returns what an alias stands for.
func aliased(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// mapping returns the values of a mapping by their keys. ok is false if the node is none. Keys that are not in takes, and keys that are there twice, are
// mistakes.
func (p *parser) mapping(node *yaml.Node, what string, takes ...string) (values map[string]*yaml.Node, ok bool) {
	n := aliased(node)
	if n.Kind != yaml.MappingNode {
		if n.Kind == yaml.ScalarNode && n.Tag == "!!null" && len(takes) > 0 {
			return nil, true
		}
		p.wrong(node.Line, "%s: takes keys with values, such as %s: …", what, append(takes, "key")[0])
		return nil, false
	}
	values = make(map[string]*yaml.Node)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch {
		case key.Kind != yaml.ScalarNode:
			p.wrong(key.Line, "%s: a key is no text", what)
		case len(takes) > 0 && !slices.Contains(takes, key.Value):
			p.wrong(key.Line, "%s: unknown key %s; takes %s", what, config.Shown(cut(key.Value)), strings.Join(takes, ", "))
		case values[key.Value] != nil:
			p.wrong(key.Line, "%s: the key %s is there twice", what, config.Shown(cut(key.Value)))
		default:
			values[key.Value] = value
		}
	}
	return values, true
}

// list returns the members of a list. A node that is not there has none.
func (p *parser) list(node *yaml.Node, what string) []*yaml.Node {
	if node == nil {
		return nil
	}
	n := aliased(node)
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		p.wrong(node.Line, "%s: takes a list, each member behind a -", what)
		return nil
	}
	return n.Content
}

// texts returns a text, or the texts of a list.
func (p *parser) texts(node *yaml.Node, what string) (texts []string) {
	if node == nil {
		return nil
	}
	if aliased(node).Kind == yaml.ScalarNode {
		return []string{p.text(node, what)}
	}
	for _, n := range p.list(node, what) {
		texts = append(texts, p.text(n, what))
	}
	return texts
}

// text returns a node's text; of one that is not there, nothing.
func (p *parser) text(node *yaml.Node, what string) string {
	if node == nil {
		return ""
	}
	n := aliased(node)
	switch {
	case n.Kind != yaml.ScalarNode:
		p.wrong(node.Line, "%s: takes a text", what)
		return ""
	case n.Tag == "!!null":
		return ""
	case strings.ContainsRune(n.Value, 0):
		p.wrong(node.Line, "%s: holds a character of the code 0", what)
		return ""
	}
	return n.Value
}

// duration returns a node's duration, from low to high; of a node that is not there, other.
func (p *parser) duration(node *yaml.Node, what string, other, low, high time.Duration) time.Duration {
	if node == nil {
		return other
	}
	text := p.text(node, what)
	d, err := config.ParseDuration(text)
	if err != nil || d < low || d > high || d%time.Second != 0 {
		p.wrong(node.Line, "%s: got %s, takes whole seconds such as 30s, 5m or 1h, from %v to %v", what, config.Shown(cut(text)), short(low), short(high))
		return other
	}
	return d
}

// short returns a duration without units of which there are none.
func short(d time.Duration) string {
	if d != 0 && d%(24*time.Hour) == 0 {
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = text[:len(text)-2]
	}
	if strings.HasSuffix(text, "h0m") {
		text = text[:len(text)-2]
	}
	return text
}

// cut returns the beginning of a text.
func cut(text string) string {
	if r := []rune(text); len(r) > 64 {
		return string(r[:64]) + "…"
	}
	return text
}

// namePattern is what names are made of: they are labels, and parts of messages.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._ -]*$`)

// name reads the name of a receiver or of a search. It returns "" if there is none.
func (p *parser) name(node, of *yaml.Node, what string) string {
	if node == nil {
		p.wrong(of.Line, "%s: has no name", what)
		return ""
	}
	name := p.text(node, what+": name")
	if len(name) > maxNameBytes || !namePattern.MatchString(name) || strings.HasSuffix(name, " ") {
		p.wrong(node.Line, "%s: name: got %s, takes letters, digits and . _ - with a letter or a digit first, at most %d", what, config.Shown(cut(name)), maxNameBytes)
		return ""
	}
	return name
}

// receiver reads a receiver. It returns nil if it has no name.
func (p *parser) receiver(node *yaml.Node) *Receiver {
	v, ok := p.mapping(node, "a receiver", "name", "alertmanager", "webhook", "webhook_file", "secret", "secret_file")
	if !ok {
		return nil
	}
	r := &Receiver{Name: p.name(v["name"], node, "a receiver")}
	if r.Name == "" {
		return nil
	}
	what := "receiver " + r.Name
	for _, text := range p.texts(v["alertmanager"], what+": alertmanager") {
		r.Alertmanagers = append(r.Alertmanagers, hook(p, v["alertmanager"], what+": alertmanager", strings.TrimRight(text, "/")))
	}
	webhooks := 0
	if n := v["webhook"]; n != nil {
		webhooks++
		r.Webhook = hook(p, n, what+": webhook", p.text(n, what+": webhook"))
	}
	if n := v["webhook_file"]; n != nil {
		webhooks++
		r.Webhook = hook(p, n, what+": webhook_file", p.content(n, what+": webhook_file"))
	}
	if (v["alertmanager"] != nil) == (webhooks > 0) || webhooks > 1 {
		p.wrong(node.Line, "%s: takes one of alertmanager, webhook and webhook_file", what)
	}
	if v["secret"] != nil && v["secret_file"] != nil {
		p.wrong(v["secret_file"].Line, "%s: takes one of secret and secret_file", what)
	}
	for _, key := range []string{"secret", "secret_file"} {
		n := v[key]
		if n == nil {
			continue
		}
		if webhooks == 0 {
			p.wrong(n.Line, "%s: %s: is for a webhook alone", what, key)
		}
		secret := p.text(n, what+": "+key)
		if key == "secret_file" {
			secret = p.content(n, what+": "+key)
		}
		if r.Secret = config.HookSecret(secret); r.Secret.Check() != nil || secret == "" {
			p.wrong(n.Line, "%s: %s: takes %s", what, key, r.Secret.Takes())
		}
	}
	return r
}

// hook returns the URL of a receiver. What is wrong with one is told without it: it may hold a password.
func hook(p *parser, node *yaml.Node, what, text string) config.HookURL {
	u := config.HookURL(text)
	if err := u.Check(); err != nil {
		p.wrong(node.Line, "%s: %v", what, err)
	}
	return u
}

// secretBytes is the most that a file with a secret has.
const secretBytes = 4096

// content returns what is in the file that a node names, without white space around it.
func (p *parser) content(node *yaml.Node, what string) string {
	name := p.text(node, what)
	if name == "" || strings.Contains(name, "://") || strings.Contains(name, "\n") {
		p.wrong(node.Line, "%s: takes the name of a file", what)
		return ""
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(p.dir, name)
	}
	info, err := os.Stat(name)
	if err == nil && (!info.Mode().IsRegular() || info.Size() > secretBytes) {
		p.wrong(node.Line, "%s: takes a file of at most %d bytes", what, secretBytes)
		return ""
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(name)
	}
	if err != nil {
		p.wrong(node.Line, "%s: %v", what, err)
		return ""
	}
	return strings.TrimSpace(string(text))
}

// labelPattern is what the name of a label may be: Alertmanager takes no others before its version 0.27.
var labelPattern = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)

// search reads a search. It returns nil if it has no name.
func (p *parser) search(node *yaml.Node, receivers map[string]bool) *Search {
	v, ok := p.mapping(node, "a search", "name", "q", "when", "by", "every", "for", "keep_firing", "delay", "remember", "clock", "field", "groups", "labels", "summary", "tell", "count")
	if !ok {
		return nil
	}
	s := &Search{Name: p.name(v["name"], node, "a search"), Line: node.Line}
	if s.Name == "" {
		return nil
	}
	what := "search " + s.Name
	var err error
	s.Q = p.text(v["q"], what+": q")
	if s.Query, err = language.Parse(s.Q); err != nil {
		p.wrong(v["q"].Line, "%s: q: %v", what, err)
	}
	s.Count = true
	if n := v["count"]; n != nil {
		if s.Count, err = strconv.ParseBool(p.text(n, what+": count")); err != nil {
			p.wrong(n.Line, "%s: count: takes true or false", what)
		}
	}
	if v["when"] == nil {
		for _, key := range []string{"by", "every", "for", "keep_firing", "delay", "remember", "clock", "field", "groups", "tell", "labels"} {
			if n := v[key]; n != nil {
				p.wrong(n.Line, "%s: %s: takes effect with when alone", what, key)
			}
		}
		s.Summary = p.text(v["summary"], what+": summary")
		return s
	}
	before := len(p.mistakes)
	s.Condition = p.condition(v["when"], what)
	s.Clock = cmp.Or(p.text(v["clock"], what+": clock"), "time")
	if s.Clock != "time" && s.Clock != "inserted_at" {
		p.wrong(v["clock"].Line, "%s: clock: got %s, takes time or inserted_at", what, config.Shown(cut(s.Clock)))
	}
	s.Every = p.duration(v["every"], what+": every", time.Minute, time.Second, 24*time.Hour)
	s.For = p.duration(v["for"], what+": for", 0, 0, 7*24*time.Hour)
	s.Keep = p.duration(v["keep_firing"], what+": keep_firing", 0, 0, 7*24*time.Hour)
	s.Delay = p.duration(v["delay"], what+": delay", 10*time.Second, 0, 24*time.Hour)
	s.Remember = p.duration(v["remember"], what+": remember", 24*time.Hour, time.Minute, 30*24*time.Hour)
	s.Field = p.text(v["field"], what+": field")
	s.Summary = p.text(v["summary"], what+": summary")
	s.By = p.texts(v["by"], what+": by")
	s.Groups = 100
	if n := v["groups"]; n != nil {
		if s.Groups, err = strconv.Atoi(p.text(n, what+": groups")); err != nil || s.Groups < 1 || s.Groups > maxGroups {
			p.wrong(n.Line, "%s: groups: takes a whole number from 1 to %d", what, maxGroups)
		}
	}
	p.labels(s, v, what)
	for _, name := range p.texts(v["tell"], what+": tell") {
		switch {
		case !receivers[name]:
			p.wrong(v["tell"].Line, "%s: tell: there is no receiver %s", what, config.Shown(cut(name)))
		case slices.Contains(s.Tell, name):
			p.wrong(v["tell"].Line, "%s: tell: %s is there twice", what, name)
		}
		s.Tell = append(s.Tell, name)
	}
	if s.Condition == nil || len(p.mistakes) > before {
		return s
	}
	p.goesTogether(s, v, what)
	return s
}

// goesTogether notes what in a search does not go with its condition.
func (p *parser) goesTogether(s *Search, v mapped, what string) {
	c := s.Condition
	switch {
	case c.kind != newPattern && s.Field != "":
		p.wrong(v["field"].Line, "%s: field: takes effect with a new pattern alone", what)
	case c.kind == newPattern && len(s.By) > 0:
		p.wrong(v["by"].Line, "%s: by: a new pattern has no groups", what)
	case c.kind == figures && v["remember"] != nil:
		p.wrong(v["remember"].Line, "%s: remember: takes effect with absent and new pattern alone", what)
	case c.kind == absent && len(s.By) > 0 && s.Remember <= c.Window:
		p.wrong(s.Line, "%s: remember: got %v, takes more than the window, %v", what, short(s.Remember), short(c.Window))
	case c.kind == figures && len(s.By) > 0 && holdsOfNone(c.having):
		p.wrong(v["when"].Line, "%s: when: a group without records is not seen, so nothing is found by %s: takes absent in %s", what, c.having, short(c.Window))
	}
	epoch := time.Unix(1e9, 0)
	route, parameters := s.Parameters(epoch, epoch.Add(c.Window))
	if err := p.terms.Check(route, parameters); err != nil {
		p.wrong(s.Line, "%s: %v", what, err)
	}
}

// mapped are the values of a mapping by their keys.
type mapped = map[string]*yaml.Node

// holdsOfNone reports whether a list of comparisons asks for no records, such as count=0 or count<1.
func holdsOfNone(having string) bool { return noneList.MatchString(having) }

var noneList = regexp.MustCompile(`^\s*count\s*(=\s*0|<=\s*0|<\s*1)\s*$`)

// labels reads the labels of a search, and checks that those of its groups are others.
func (p *parser) labels(s *Search, v mapped, what string) {
	s.Labels = make(map[string]string)
	taken := map[string]string{"alertname": "that of every alert", "pattern": "that of a pattern"}
	if n := v["labels"]; n != nil {
		labels, _ := p.mapping(n, what+": labels")
		for name, value := range labels {
			switch _, isTaken := taken[name]; {
			case !labelPattern.MatchString(name) || len(name) > maxNameBytes:
				p.wrong(value.Line, "%s: labels: got %s, takes names of letters, digits and _ with no digit first", what, config.Shown(cut(name)))
			case isTaken:
				p.wrong(value.Line, "%s: labels: %s is set by itself", what, name)
			}
			s.Labels[name] = p.text(value, what+": labels: "+name)
		}
	}
	for name := range s.Labels {
		taken[name] = "one of labels"
	}
	for _, field := range s.By {
		name := labelOf(field)
		if as, isTaken := taken[name]; isTaken {
			p.wrong(v["by"].Line, "%s: by: the label of the field %s is %s, and so is %s", what, config.Shown(cut(field)), name, as)
		}
		taken[name] = "that of the field " + field
	}
}

// labelOf returns the name of the label that has the values of a field.
func labelOf(field string) string {
	name := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}, strings.ReplaceAll(field, `"`, ""))
	if name == "" || name[0] >= '0' && name[0] <= '9' {
		name = "_" + name
	}
	return name
}

var (
	conditionPattern = regexp.MustCompile(`^(.+?)\s+in\s+(\S+)$`)
	growsPattern     = regexp.MustCompile(`^count\s*(>\s*0|>=\s*1)$`)
	conditionTakes   = "takes comparisons of figures with a window such as count > 50 in 5m or count > 100, p95(duration_ms) > 500 in 10m; or absent in 10m; or new pattern in 10m"
)

// condition reads a condition. It returns nil if it can't.
func (p *parser) condition(node *yaml.Node, what string) *Condition {
	text := strings.Join(strings.Fields(p.text(node, what+": when")), " ")
	m := conditionPattern.FindStringSubmatch(text)
	if m == nil {
		p.wrong(node.Line, "%s: when: got %s, %s", what, config.Shown(cut(text)), conditionTakes)
		return nil
	}
	c := &Condition{Text: text}
	var err error
	if c.Window, err = config.ParseDuration(m[2]); err != nil || c.Window < time.Second || c.Window > 30*24*time.Hour || c.Window%time.Second != 0 {
		p.wrong(node.Line, "%s: when: got the window %s, takes whole seconds such as 30s, 5m or 1h, from 1s to 30d", what, config.Shown(cut(m[2])))
		return nil
	}
	switch m[1] {
	case "absent":
		c.kind = absent
		return c
	case "new pattern":
		c.kind = newPattern
		return c
	}
	c.kind, c.having, c.grows = figures, m[1], growsPattern.MatchString(m[1])
	if c.figures, c.hold, err = p.terms.Figures(c.having); err != nil {
		p.wrong(node.Line, "%s: when: %v", what, err)
		return nil
	}
	return c
}
