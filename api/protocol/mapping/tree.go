package mapping

import (
	"hash/maphash"
	"strings"
)

// kind is the form of a member's value.
type kind uint8

const (
	kindObject kind = iota // made of dots in keys, or for what loses
	kindString
	kindInt
	kindUint
	kindFloat
	kindBool
	kindNull
	kindTime    // nanoseconds, in number
	kindMade    // JSON that jsonb takes
	kindJSON    // JSON from outside
	kindEncoded // in the protocol's own form
)

// member is a key and its value.
type member struct {
	key    string
	text   string
	number uint64

	// Where the member stands in a record that is not put together in a tree. Dots in key make objects before last. Those before
	// common are open already.
	common, last uint32

	source Source
	kind   kind
}

const (
	root int32 = 0
	none int32 = 0 // the root is no member, so its index can stand for none
)

// node is a member in a tree.
type node struct {
	member
	hash              uint32
	parent            int32
	first, last, next int32 // the members of an object; none is the end
	ghost             bool  // it is written otherwise
	closed            bool  // an object for what loses; the dots of keys don't lead into it
}

// tree is an object that is being put together. The zero value must be reset.
type tree struct {
	nodes       []node // the first is the object itself
	mask        uint64 // has a bit for each top-level key
	timeAt      int32  // the top-level member that holds the protocol's time
	literalDots bool   // a key that was taken as it is has a dot
	hasJSON     bool   // a value is kindJSON

	// losers are the objects for what loses of each source, and in them those for what has no place there either.
	losers, leftovers [int(First) + MostSources]int32

	table []int32 // nodes by parent and key, once there are many
}

const (
	// tableFrom is the number of nodes from which on they are looked up in a table. Below it comparing hashes is faster.
	tableFrom = 32

	// mostNested is how many objects the dots of one key make. The rest of the key keeps its dots.
	mostNested = 16

	// mostSearched is how many bytes of JSON are looked through, for each record, to find whether it has a path of keys.
	mostSearched = 16 << 10
)

func (t *tree) reset() {
	t.nodes = append(t.nodes[:0], node{})
	t.mask, t.timeAt, t.literalDots, t.hasJSON = 0, none, false, false
	clear(t.losers[:])
	clear(t.leftovers[:])
	t.table = t.table[:0]
}

// release lets go of strings, and of memory that is too large to keep.
func (t *tree) release() {
	clear(t.nodes[:cap(t.nodes)]) // records before the last may have had more
	if t.reset(); cap(t.nodes) > maxKeptMembers {
		t.nodes, t.table = nil, nil
	}
}

// add adds a member by the rules of the package.
func (t *tree) add(m *Mapper, v member) {
	t.hasJSON = t.hasJSON || v.kind == kindJSON
	if v.kind == kindTime && v.key == TimeField && t.find(root, TimeField, hashOf(TimeField)) != none &&
		t.find(root, otherTimeField, hashOf(otherTimeField)) == none {
		v.key = otherTimeField
	}
	if t.put(m, root, v) {
		return
	}
	at := t.closed(&t.losers[v.source], root, m.sourceOf(v.source).Name, v.source)
	if t.put(m, at, v) {
		return
	}
	// Its name is there that of an object, which the dots of other keys made.
	at = t.closed(&t.leftovers[v.source], at, "_", v.source)
	t.putLast(at, v)
}

// closed returns the node that at holds. If it holds none yet, that is a new object with a name, with underscores in front if the
// name is taken.
func (t *tree) closed(at *int32, parent int32, name string, s Source) int32 {
	if *at == none {
		for t.find(parent, name, hashOf(name)) != none {
			name = "_" + name
		}
		*at = t.insert(parent, node{member: member{key: name, kind: kindObject, source: s}, hash: hashOf(name), closed: true})
	}
	return *at
}

// put adds a member to an object. It reports false if another value has its name there.
func (t *tree) put(m *Mapper, at int32, v member) bool {
	dot := strings.IndexByte(v.key, '.')
	if dot < 0 {
		return t.putLast(at, v)
	}
	if v.source < First || !m.sourceOf(v.source).Dotted {
		t.literalDots = true
		return t.putLast(at, v)
	}
	if t.literalDots {
		if i := t.find(at, v.key, hashOf(v.key)); i != none {
			return t.meet(i, v)
		}
	}
	for range mostNested {
		if dot <= 0 || dot == len(v.key)-1 {
			break
		}
		name := v.key[:dot]
		hash := hashOf(name)
		i := t.find(at, name, hash)
		if i == none {
			i = t.insert(at, node{member: member{key: name, kind: kindObject, source: v.source}, hash: hash})
		}
		if n := &t.nodes[i]; n.kind != kindObject || n.closed {
			if value, ok := m.lookUp(n, v.key[dot+1:]); ok {
				return sameAsJSON(value, v)
			}
			break
		}
		at, v.key = i, v.key[dot+1:]
		dot = strings.IndexByte(v.key, '.')
	}
	return t.putLast(at, v)
}

// putLast adds a member to an object under its whole key.
func (t *tree) putLast(at int32, v member) bool {
	hash := hashOf(v.key)
	if i := t.find(at, v.key, hash); i != none {
		return t.meet(i, v)
	}
	i := t.insert(at, node{member: v, hash: hash})
	if v.kind == kindTime && at == root && v.key == TimeField {
		t.timeAt = i
	}
	return true
}

// meet decides what becomes of a member whose name is there already. It reports false if its value has to go elsewhere.
func (t *tree) meet(i int32, v member) bool {
	n := &t.nodes[i]
	switch {
	case n.kind == kindObject:
		return false
	case n.source == v.source:
		n.text, n.number, n.kind, n.ghost = v.text, v.number, v.kind, false
		return true
	}
	return same(&n.member, v)
}

// same reports whether two members have the same value.
func same(n *member, v member) bool {
	if n.kind == kindMade || n.kind == kindJSON {
		return sameAsJSON(n.text, v)
	}
	return n.kind == v.kind && n.number == v.number && n.text == v.text
}

// sameAsJSON reports whether JSON is the value of a member. It may report false if it is.
func sameAsJSON(json string, v member) bool {
	switch v.kind {
	case kindMade, kindJSON:
		return json == v.text
	case kindString:
		// A backslash in one of them would stand for something else in the other.
		return len(json) == len(v.text)+2 && json[0] == '"' && json[1:len(json)-1] == v.text && strings.IndexByte(v.text, '\\') < 0
	}
	return false
}

// find returns the member of an object that has a key, or none.
func (t *tree) find(object int32, key string, hash uint32) int32 {
	if len(t.table) > 0 {
		return t.table[t.slot(object, key)]
	}
	if object == root && t.mask&maskOf(hash) == 0 {
		return none
	}
	for i := t.nodes[object].first; i != none; i = t.nodes[i].next {
		if n := &t.nodes[i]; n.hash == hash && n.key == key {
			return i
		}
	}
	return none
}

// maskOf returns the bit of tree.mask for a hash.
func maskOf(hash uint32) uint64 { return 1 << (hash & 63) }

// insert adds a node to an object behind its other members.
func (t *tree) insert(object int32, n node) int32 {
	i := t.append(object, n)
	o := &t.nodes[object]
	if o.last == none {
		o.first = i
	} else {
		t.nodes[o.last].next = i
	}
	o.last = i
	return i
}

// insertGhost adds a node to the root that is not written. If several have the same key, the one that was added last is found.
func (t *tree) insertGhost(n node) {
	n.ghost = true
	if len(t.table) > 0 {
		if i := t.find(root, n.key, n.hash); i != none {
			t.nodes[i].member = n.member
			return
		}
	}
	i := t.append(root, n)
	o := &t.nodes[root]
	t.nodes[i].next = o.first
	if o.first = i; o.last == none {
		o.last = i
	}
}

// append adds a node that is linked to no other yet.
func (t *tree) append(object int32, n node) int32 {
	i := int32(len(t.nodes))
	n.parent = object
	t.nodes = append(t.nodes, n)
	if object == root {
		t.mask |= maskOf(n.hash)
	}
	if len(t.nodes) > tableFrom {
		t.note(i)
	}
	return i
}

// note puts a node into the table, which it makes or enlarges if need be.
func (t *tree) note(i int32) {
	if 2*len(t.nodes) <= len(t.table) {
		t.table[t.slot(t.nodes[i].parent, t.nodes[i].key)] = i
		return
	}
	size := 4 * tableFrom
	for size < 4*len(t.nodes) {
		size *= 2
	}
	if cap(t.table) < size {
		t.table = make([]int32, size)
	} else {
		t.table = t.table[:size]
		clear(t.table)
	}
	for k := 1; k < len(t.nodes); k++ {
		t.table[t.slot(t.nodes[k].parent, t.nodes[k].key)] = int32(k)
	}
}

// seed keeps clients from choosing keys that collide in the table.
var seed = maphash.MakeSeed()

// slot returns the place in the table of the member of an object that has a key, or the empty place where it would be.
func (t *tree) slot(object int32, key string) int {
	const golden = 0x9e3779b97f4a7c15
	mask := len(t.table) - 1
	at := int(maphash.String(seed, key)^uint64(object)*golden) & mask
	for t.table[at] != none {
		if n := &t.nodes[t.table[at]]; n.parent == object && n.key == key {
			break
		}
		at = (at + 1) & mask
	}
	return at
}

// hashOf returns a hash of a key. It is fast rather than good: it tells most keys of one record apart.
func hashOf(s string) uint32 {
	var a, b uint64
	switch n := len(s); {
	case n >= 8:
		a, b = load64(s), load64(s[n-8:])
	case n >= 4:
		a, b = uint64(load32(s)), uint64(load32(s[n-4:]))
	case n > 0:
		a = uint64(s[0])<<16 | uint64(s[n/2])<<8 | uint64(s[n-1])
	}
	const k1, k2 = 0x9e3779b97f4a7c15, 0xff51afd7ed558ccd
	h := (a ^ uint64(len(s)) ^ b*k1) * k2
	return uint32(h >> 32)
}

func load64(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

func load32(s string) uint32 {
	_ = s[3]
	return uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
}
