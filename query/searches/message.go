package searches

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"millrace/internal/config"
)

const (
	// groupsTold is how many groups a webhook's message has. The others are counted.
	groupsTold = 20
	// groupsSampled is how many groups of a message show records.
	groupsSampled = 5
	// sampleBytes is the most that a record has which is shown. Longer ones are left out, and linked.
	sampleBytes = 4 << 10
)

// notice is what an evaluation has to tell. The database keeps it until it is sent.
type notice struct {
	Search    string            `json:"search"`
	Condition string            `json:"condition"`
	Summary   string            `json:"summary,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	At        time.Time         `json:"at"` // when the evaluation was due
	From      time.Time         `json:"from"`
	To        time.Time         `json:"to"`
	Every     int               `json:"every"` // seconds
	Link      string            `json:"link,omitempty"`
	Firing    int               `json:"firing"` // groups
	Groups    []noticed         `json:"groups"`
}

// noticed is a group in a notice.
type noticed struct {
	Status   string                     `json:"status"`            // firing or resolved
	Changed  bool                       `json:"changed"`           // it fired, or was resolved, by this evaluation
	Group    []field                    `json:"group,omitempty"`   // in the order of by
	Pattern  string                     `json:"pattern,omitempty"` // of a new pattern
	Since    time.Time                  `json:"since"`
	Fired    time.Time                  `json:"fired"`
	Resolved *time.Time                 `json:"resolved,omitempty"`
	Value    map[string]json.RawMessage `json:"value,omitempty"`
	Count    int64                      `json:"count"`
	Link     string                     `json:"link,omitempty"`
	Samples  []json.RawMessage          `json:"samples,omitempty"`

	of Group
}

// field is a field of a group with its value, nil if the records have none.
type field struct {
	Name  string  `json:"name"`
	Value *string `json:"value"`
}

// notice returns what an evaluation has to tell: what changed, and which other alerts fire.
func (f *File) notice(s *Search, st *State, due, from, to time.Time, changes []Change) *notice {
	n := &notice{
		Search: s.Name, Condition: s.Condition.Text, Summary: s.Summary, Labels: s.Labels, At: due, From: from, To: to,
		Every: int(s.Every / time.Second), Link: f.link(s, nil, from, to),
	}
	changed := make(map[string]bool)
	add := func(status string, isChange bool, g Group, since, firedAt time.Time, records []json.RawMessage) {
		told := noticed{
			Status: status, Changed: isChange, Pattern: g.Text, Since: since, Fired: firedAt, Value: g.Value, Count: g.Count, Samples: records, of: g,
			Link: f.link(s, &g, from, to),
		}
		for i, name := range g.Fields {
			told.Group = append(told.Group, field{name, g.Values[i]})
		}
		if status == "resolved" {
			told.Resolved = &due
		}
		n.Groups = append(n.Groups, told)
	}
	for _, c := range changes {
		changed[c.Group.key()] = true
		if c.What == fired {
			add("firing", true, c.Group, c.Since, c.Fired, nil)
		} else {
			add("resolved", true, c.Group, c.Since, c.Fired, nil)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(st.Alerts)) {
		a := st.Alerts[key]
		if a.Fired == nil {
			continue
		}
		n.Firing++
		if !changed[key] {
			add("firing", false, a.Group, a.Since, *a.Fired, a.Samples)
		}
	}
	return n
}

// webhookMessage is what a webhook gets. Its form is told in deploy/ALERTS.md.
type webhookMessage struct {
	Version   int               `json:"version"`
	ID        string            `json:"id"` // the same when the message is sent again
	Search    string            `json:"search"`
	Status    string            `json:"status"` // firing if a group fires, else resolved
	Condition string            `json:"condition"`
	Summary   string            `json:"summary"`
	Labels    map[string]string `json:"labels"`
	Time      string            `json:"time"`
	Window    webhookWindow     `json:"window"`
	Link      string            `json:"link,omitempty"`
	Firing    int               `json:"firing"`
	Groups    []webhookGroup    `json:"groups"`
	More      int               `json:"more"` // groups that changed and are not told
}

type webhookWindow struct {
	From string `json:"from"`
	To   string `json:"to"`
}

type webhookGroup struct {
	Status   string                     `json:"status"`
	Group    map[string]*string         `json:"group"`
	Pattern  string                     `json:"pattern,omitempty"`
	Since    string                     `json:"since"`
	Fired    string                     `json:"fired"`
	Resolved string                     `json:"resolved,omitempty"`
	Value    map[string]json.RawMessage `json:"value"`
	Count    int64                      `json:"count"`
	Link     string                     `json:"link,omitempty"`
	Samples  []json.RawMessage          `json:"samples"`
}

// webhookBody returns the body of a webhook's message.
func (n *notice) webhookBody(id string) ([]byte, error) {
	m := webhookMessage{
		Version: 1, ID: id, Search: n.Search, Status: "resolved", Condition: n.Condition, Summary: n.Summary, Labels: n.Labels, Time: textOf(n.At),
		Window: webhookWindow{textOf(n.From), textOf(n.To)}, Link: n.Link, Firing: n.Firing, Groups: []webhookGroup{},
	}
	if m.Labels == nil {
		m.Labels = map[string]string{}
	}
	for _, g := range n.Groups {
		if !g.Changed {
			continue
		}
		if g.Status == "firing" {
			m.Status = "firing"
		}
		if len(m.Groups) == groupsTold {
			m.More++
			continue
		}
		told := webhookGroup{
			Status: g.Status, Group: make(map[string]*string), Pattern: g.Pattern, Since: textOf(g.Since), Fired: textOf(g.Fired), Value: g.Value,
			Count: g.Count, Link: g.Link, Samples: g.Samples,
		}
		for _, f := range g.Group {
			told.Group[f.Name] = f.Value
		}
		if g.Resolved != nil {
			told.Resolved = textOf(*g.Resolved)
		}
		if told.Value == nil {
			told.Value = map[string]json.RawMessage{}
		}
		if told.Samples == nil {
			told.Samples = []json.RawMessage{}
		}
		m.Groups = append(m.Groups, told)
	}
	return json.Marshal(m)
}

// textOf returns a time as messages have it.
func textOf(at time.Time) string { return at.UTC().Format(timeFormat) }

// signature returns the header that shows that a message comes from somebody who knows the secret: the time, and HMAC-SHA256 of the time, a point and
// the body.
func signature(secret config.HookSecret, at time.Time, body []byte) string {
	seconds := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(string(secret)))
	mac.Write([]byte(seconds + "."))
	mac.Write(body)
	return "t=" + seconds + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}

// alert is an alert as Alertmanager's POST /api/v2/alerts takes it:
// https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml
type alert struct {
	Labels       map[string]string `json:"labels"`
	Annotations  map[string]string `json:"annotations"`
	StartsAt     time.Time         `json:"startsAt"`
	EndsAt       time.Time         `json:"endsAt"`
	GeneratorURL string            `json:"generatorURL,omitempty"`
}

// endsAfter is how long Alertmanager takes an alert for firing that nobody tells again, at least. It is told again with each evaluation; four of them may be
// missed.
const endsAfter = 5 * time.Minute

// alertsBody returns the body of a message to Alertmanager that is sent at a time: all alerts that fire, and those that were resolved.
func (n *notice) alertsBody(at time.Time) ([]byte, error) {
	alerts := []alert{}
	for _, g := range n.Groups {
		a := alert{Labels: map[string]string{}, Annotations: map[string]string{}, StartsAt: g.Fired, GeneratorURL: g.Link}
		for name, value := range n.Labels {
			a.Labels[name] = value
		}
		a.Labels["alertname"] = n.Search
		var texts []string
		for _, f := range g.Group {
			switch {
			case f.Value == nil: // a label without a value is the same as none
				texts = append(texts, f.Name+" missing")
			case *f.Value == "":
				a.Labels[labelOf(f.Name)] = `""`
				texts = append(texts, f.Name+` ""`)
			default:
				a.Labels[labelOf(f.Name)] = *f.Value
				texts = append(texts, f.Name+" "+*f.Value)
			}
		}
		if g.Pattern != "" {
			a.Labels["pattern"] = g.Pattern
			texts = append(texts, g.Pattern)
		}
		a.Annotations["summary"] = n.Summary
		if n.Summary == "" {
			a.Annotations["summary"] = strings.TrimSuffix(n.Search+": "+n.Condition+" ("+strings.Join(texts, ", ")+")", " ()")
		}
		a.Annotations["description"] = fmt.Sprintf("%d records from %s to %s", g.Count, textOf(n.From), textOf(n.To))
		a.Annotations["count"] = strconv.FormatInt(g.Count, 10)
		for _, name := range slices.Sorted(maps.Keys(g.Value)) {
			if name != "count" {
				a.Annotations["description"] += ", " + name + " " + string(g.Value[name])
			}
		}
		if len(g.Samples) > 0 {
			lines := make([]string, len(g.Samples))
			for i, s := range g.Samples {
				lines[i] = string(s)
			}
			a.Annotations["samples"] = strings.Join(lines, "\n")
		}
		if g.Resolved != nil {
			a.EndsAt = *g.Resolved
		} else {
			a.EndsAt = at.Add(max(endsAfter, 4*time.Duration(n.Every)*time.Second))
		}
		if !a.EndsAt.After(a.StartsAt) {
			a.EndsAt = a.StartsAt.Add(time.Millisecond) // it refuses an alert that ends before it starts
		}
		alerts = append(alerts, a)
	}
	return json.Marshal(alerts)
}
