package frame

import (
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
)

// neighbour returns the key that is k after key: a generator that counts up within a millisecond makes such keys.
func neighbour(key uuid.UUID, k uint64) uuid.UUID {
	low := binary.BigEndian.Uint64(key[8:])
	binary.BigEndian.PutUint64(key[8:], low+k)
	return key
}

// gap returns how far the low 62 bits of two ids are apart.
func gap(a, b uuid.UUID) uint64 {
	x, y := binary.BigEndian.Uint64(a[8:])<<2>>2, binary.BigEndian.Uint64(b[8:])<<2>>2
	return max(x, y) - min(x, y)
}

func TestTheBaseOfAKeyIsOfItsTimeAndTheSameEveryTime(t *testing.T) {
	key := uuid.MustParse("01890a5d-ac96-774b-bcce-b302099a8057")
	// Fixed for ever: a request that is sent again after an upgrade must get the same ids.
	if got, want := BaseOfKey(key).String(), "01890a5d-ac96-796f-957a-1c6de83102c6"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for range 1000 {
		var key uuid.UUID
		binary.BigEndian.PutUint64(key[:8], rand.Uint64()&^0xf000|0x7000)
		binary.BigEndian.PutUint64(key[8:], rand.Uint64()>>2|1<<63)
		base := BaseOfKey(key)
		if !IsV7(base) || Millis(base) != Millis(key) || base == key || base != BaseOfKey(key) {
			t.Fatalf("the base of %s is %s", key, base)
		}
		if last := ID(base, 1<<32); gap(base, last) != 1<<32 {
			t.Fatalf("the ids from %s on wrap around", base)
		}
	}
}

func TestNeighbouringKeysHaveIdsFarApart(t *testing.T) {
	key := uuid.MustParse("01890a5d-ac96-774b-bcce-b302099a8057")
	bases := []uuid.UUID{BaseOfKey(key)}
	for k := range uint64(1000) {
		bases = append(bases, BaseOfKey(neighbour(key, k+1)))
	}
	slices.SortFunc(bases, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	for i, b := range bases[1:] {
		if b == bases[i] || string(b[:8]) == string(bases[i][:8]) && gap(b, bases[i]) < 1<<32 {
			t.Errorf("%s and %s are the bases of two keys", bases[i], b)
		}
	}
}

// clocked returns a source, and the variable that is its clock.
func clocked() (*source, *time.Time) {
	now := time.UnixMilli(1_790_000_000_000)
	return &source{now: func() time.Time { return now }}, &now
}

func TestIdsCountUpWhileTheClockStandsOrGoesBackALittle(t *testing.T) {
	s, now := clocked()
	last := s.next()
	for i, step := range []time.Duration{0, 0, time.Microsecond, -time.Microsecond, -300 * time.Millisecond, -300 * time.Millisecond, 0, time.Second} {
		*now = now.Add(step)
		for range 100 {
			id := s.next()
			if !IsV7(id) || slices.Compare(id[:8], last[:8]) <= 0 {
				t.Fatalf("step %d: %s follows %s", i, id, last)
			}
			if ahead := Time(id).Sub(*now); ahead > maxDrift+10*time.Millisecond {
				t.Fatalf("step %d: %s is %v ahead of the clock", i, id, ahead)
			}
			last = id
		}
	}
}

// TestIdsFollowAClockThatWasWrong sets the clock ahead for a second, and back.
func TestIdsFollowAClockThatWasWrong(t *testing.T) {
	s, now := clocked()
	s.next()
	for _, wrong := range []time.Duration{30 * time.Hour, 1100 * time.Millisecond, -9 * 24 * time.Hour} {
		seen := make(map[uuid.UUID]bool)
		right := *now
		for _, at := range []time.Time{right, right.Add(wrong), right, right.Add(wrong), right.Add(10 * time.Second)} {
			*now = at
			id := s.next()
			if off := Time(id).Sub(at); off < -time.Millisecond || off > maxDrift {
				t.Errorf("%v off and back: at %v an id is of %v", wrong, at, Time(id))
			}
			if seen[id] {
				t.Errorf("%s was made twice", id)
			}
			seen[id] = true
		}
	}
}

func TestManyMakeIdsAtOnceAndNoneTwice(t *testing.T) {
	const makers, each = 8, 5000
	var all sync.WaitGroup
	made := make([][]uuid.UUID, makers)
	for i := range makers {
		all.Go(func() {
			for range each {
				made[i] = append(made[i], NewBase())
			}
		})
	}
	all.Wait()
	seen := make(map[[8]byte]bool)
	for _, ids := range made {
		for k, id := range ids {
			if k > 0 && slices.Compare(id[:8], ids[k-1][:8]) <= 0 {
				t.Fatalf("%s follows %s", id, ids[k-1])
			}
			if first := [8]byte(id[:8]); seen[first] {
				t.Fatalf("two ids begin like %s", id)
			} else {
				seen[first] = true
			}
		}
	}
}

func BenchmarkNewBase(b *testing.B) {
	b.Run("own", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				NewBase()
			}
		})
	})
	b.Run("google", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				uuid.Must(uuid.NewV7())
			}
		})
	})
	b.Run("of a key", func(b *testing.B) {
		key := NewBase()
		b.ReportAllocs()
		for b.Loop() {
			BaseOfKey(key)
		}
	})
}

func TestABaseOfAnotherTimeIsOfThatTime(t *testing.T) {
	at := time.Date(1999, 1, 1, 0, 0, 0, int(7*time.Millisecond), time.UTC)
	a, b := BaseAt(at), BaseAt(at)
	if a == b || !IsV7(a) || !Time(a).Equal(at) || !Time(b).Equal(at) {
		t.Errorf("got %s of %v and %s of %v, want two of %v", a, Time(a), b, Time(b), at)
	}
}

func TestTheKeyOfABodyHasTheFirstBitsOfItsHash(t *testing.T) {
	hash := sha256.Sum256([]byte("a body"))
	at := time.Date(2026, 11, 28, 12, 0, 0, 123e6, time.UTC)
	key := KeyOfContent(at.UnixMilli(), hash)
	if !IsV7(key) || !Time(key).Equal(at) {
		t.Errorf("got %s of %v, want a UUIDv7 of %v", key, Time(key), at)
	}
	bit := func(b []byte, i int) byte { return b[i/8] >> (7 - i%8) & 1 }
	for i := range 74 {
		in := 52 + i // behind the version
		if i >= 12 {
			in = 66 + i - 12 // behind the variant
		}
		if bit(key[:], in) != bit(hash[:], i) {
			t.Fatalf("bit %d of the key %s is not bit %d of the hash %x", in, key, i, hash)
		}
	}
}
