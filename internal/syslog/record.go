package syslog

import "millrace/internal/record"

// Write writes what has no member of its own in a record: facility, severity, pid, msgid and structured_data, each if the message has
// it. They belong into an object of their own, syslog, which the caller opens and closes.
func (m *Message) Write(w *record.Writer) {
	if m.Priority >= 0 {
		w.String("facility", FacilityName(m.Facility()))
		w.Int("severity", int64(m.Severity()))
	}
	if n, ok := shortNumber(m.Process); ok {
		w.Int("pid", n)
	} else if m.Process != "" {
		w.String("pid", m.Process)
	}
	if m.ID != "" {
		w.String("msgid", m.ID)
	}
	if len(m.Data) > 0 {
		w.Open("structured_data")
		for _, e := range m.Data {
			w.Open(e.ID)
			writeParams(w, e.Params)
			w.Close()
		}
		w.Close()
	}
}

// shortNumber returns the number that text is, if it is one that is written the same way again.
func shortNumber(text string) (n int64, ok bool) {
	if len(text) == 0 || len(text) > 18 || text[0] == '0' && len(text) > 1 {
		return 0, false
	}
	for i := range len(text) {
		if text[i]-'0' > 9 {
			return 0, false
		}
		n = 10*n + int64(text[i]-'0')
	}
	return n, true
}

// mostCompared is the number of parameters up to which those of one name are found by comparing all.
const mostCompared = 16

// writeParams writes the parameters of an element. Several of one name become an array, as RFC 5424, 6.3.3, means them.
func writeParams(w *record.Writer, params []Param) {
	if len(params) > mostCompared {
		writeManyParams(w, params)
		return
	}
	for i, p := range params {
		before, more := false, false
		for j, other := range params {
			if j != i && other.Name == p.Name {
				before, more = before || j < i, true
			}
		}
		switch {
		case before:
		case more:
			w.Array(p.Name, func(a record.Elements) {
				for _, other := range params[i:] {
					if other.Name == p.Name {
						a.String(other.Value)
					}
				}
			})
		default:
			w.String(p.Name, p.Value)
		}
	}
}

// writeManyParams is writeParams in time that is linear in their number.
func writeManyParams(w *record.Writer, params []Param) {
	values := make(map[string][]string, len(params))
	for _, p := range params {
		values[p.Name] = append(values[p.Name], p.Value)
	}
	for _, p := range params {
		all := values[p.Name]
		delete(values, p.Name)
		switch len(all) {
		case 0: // written with the first
		case 1:
			w.String(p.Name, p.Value)
		default:
			w.Array(p.Name, func(a record.Elements) {
				for _, value := range all {
					a.String(value)
				}
			})
		}
	}
}
