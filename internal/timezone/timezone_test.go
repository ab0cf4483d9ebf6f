package timezone

import "testing"

func TestZonesAreThoseOfIANA(t *testing.T) {
	for _, name := range []string{"UTC", "Etc/UTC", "Europe/Berlin", "Europe/Kyiv", "America/Argentina/Buenos_Aires", "Etc/GMT+12", "GMT-0", "EST5EDT"} {
		if _, ok := Load(name); !ok {
			t.Errorf("%s is refused", name)
		}
	}
	for _, name := range []string{
		"", "Local", "localtime", "posixrules", "right/Europe/Berlin", "posix/Europe/Berlin", "Mars/Olympus", "europe/berlin", "+01:00", "Europe//Berlin",
		"Europe/Berlin/", "/etc/passwd", "../../etc/passwd", "Europe/../Europe/Berlin", "tzdata.zi", "zone.tab", "leapseconds", "\x00", "Europe",
	} {
		if _, ok := Load(name); ok {
			t.Errorf("%q is taken", name)
		}
	}
}
