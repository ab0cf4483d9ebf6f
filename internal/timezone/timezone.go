// Package timezone finds the time zones of IANA by their names. They come with the binary, so an image needs no others.
//
// Nothing here starts a goroutine. Load may be called by many at once.
package timezone

import (
	"regexp"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // the image holds nothing but the binary
)

var (
	zoneName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}$`)
	zones    sync.Map // *time.Location by name: time.LoadLocation reads a file each time
)

// Load returns the time zone of a name of IANA's, and reports whether there is one. Most machines have other zones too.
// Load takes none of them, neither those that count leap seconds nor this machine's own.
func Load(name string) (*time.Location, bool) {
	if zone, found := zones.Load(name); found {
		return zone.(*time.Location), true
	}
	if len(name) > 64 || !zoneName.MatchString(name) {
		return nil, false
	}
	switch first, _, _ := strings.Cut(name, "/"); first {
	case "Local", "localtime", "posixrules", "posix", "right":
		return nil, false
	}
	zone, err := time.LoadLocation(name)
	if err != nil {
		return nil, false
	}
	zones.Store(name, zone)
	return zone, true
}
