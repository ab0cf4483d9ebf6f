package hotfile

import "fmt"

// Mistake is a mistake in a file.
type Mistake struct {
	Line   int // 0: of the file as a whole
	Reason string
}

func (m Mistake) Error() string {
	if m.Line == 0 {
		return m.Reason
	}
	return fmt.Sprintf("line %d: %s", m.Line, m.Reason)
}
