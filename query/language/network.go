package language

import (
	"net/netip"
	"strings"
)

// has reports whether a text is an IP address of the network.
func (n network) has(s string) bool {
	addr, err := netip.ParseAddr(s)
	return err == nil && addr.Zone() == "" && n.prefix.Contains(addr)
}

// isAddress matches, as a regular expression of PostgreSQL, what is an IP address of the network's kind: what its type inet takes without
// an error, and netip.ParseAddr too.
func (n network) isAddress() string {
	const octet = `(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])`
	const v4 = octet + `(?:\.` + octet + `){3}`
	if n.prefix.Addr().Is4() {
		return `^` + v4 + `$`
	}
	const h = `[0-9A-Fa-f]{1,4}`
	forms := []string{
		`(?:` + h + `:){7}` + h,
		`(?:` + h + `:){6}` + v4,
		`(?:` + h + `:){1,7}:`,
		`:(?::` + h + `){1,7}`,
		`::`,
		`:(?::` + h + `){0,5}:` + v4,
	}
	for before := 1; before <= 6; before++ {
		forms = append(forms, `(?:`+h+`:){`+digit(before)+`}(?::`+h+`){1,`+digit(7-before)+`}`)
	}
	for before := 1; before <= 5; before++ {
		forms = append(forms, `(?:`+h+`:){`+digit(before)+`}(?::`+h+`){0,`+digit(5-before)+`}:`+v4)
	}
	return `^(?:` + strings.Join(forms, "|") + `)$`
}

func digit(n int) string { return string(rune('0' + n)) }
