package archive

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"
)

// NoTime is the Time of a row that has none of its own: PostgreSQL's column has 1970-01-01 00:00:00 UTC there.
const NoTime = 0

// Row is a row of the table logs.
type Row struct {
	ID         [16]byte
	InsertedAt int64  // Unix microseconds
	Time       int64  // Unix microseconds; NoTime
	Data       []byte // the record as PostgreSQL writes it
}

// at returns the time that the row counts by.
func (r *Row) at() int64 {
	if r.Time == NoTime {
		return r.InsertedAt
	}
	return r.Time
}

const (
	// GroupRows is the most rows of a row group: measured, 16 thousand to a million make files of about the same size.
	GroupRows = 64 << 10
	// GroupBytes is the most bytes of records in a row group. A Writer holds some three times as much: the records of the first group, the
	// columns, the pages. With records of 328 bytes (21 MiB a group) a copy took 137 MB, the garbage collector's share included.
	GroupBytes = 32 << 20
	// pageBytes is the size of a page before compression.
	pageBytes = 256 << 10
	// dictionaryBytes is the largest dictionary. A column with more goes on without one.
	dictionaryBytes = 1 << 20
	// bloomBits is the bits a value takes in a Bloom filter: 1 % of the values that are not there seem to be.
	bloomBits = 10
	// batchRows is how many values are handed over at once.
	batchRows = 1024
)

// The columns that every file has.
const (
	idColumn, cameColumn, timeColumn, restColumn = "_id", "_inserted_at", "_time", "_rest"
)

// Summary is what a file has.
type Summary struct {
	Rows      int
	Bytes     int64
	TailBytes int64 // behind the row groups: all that Open reads
	Groups    []GroupMarks
	Columns   []Column
}

// Writer writes rows to a file. Their order is kept; it should be that of their ids.
type Writer struct {
	out      countingWriter
	registry *Registry

	data   []byte // of the rows of the first group, until its columns are known
	starts []int  // of the rows in it

	file    *parquet.GenericWriter[any]
	leaves  []int // of the columns, by their place in the file
	shred   *shredder
	rows    []Row // of the group, without data
	bytes   int   // of records in the group
	hash    *rowHash
	values  []parquet.Value
	summary Summary
}

type countingWriter struct {
	io.Writer
	n int64
}

func (w *countingWriter) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	w.n += int64(n)
	return n, err
}

// NewWriter returns a writer of a file. The registry gets the columns that are new. The file is there when Close has returned nil.
func NewWriter(w io.Writer, registry *Registry) *Writer {
	return &Writer{out: countingWriter{Writer: w}, registry: registry, hash: newRowHash()}
}

// Bytes returns how much has been written. What the last row group takes comes on top.
func (w *Writer) Bytes() int64 { return w.out.n }

// Rows returns how many rows there are.
func (w *Writer) Rows() int { return w.summary.Rows + len(w.rows) }

// Add adds a row. Its data is copied.
func (w *Writer) Add(r *Row) error {
	w.hash.add(r)
	w.bytes += len(r.Data)
	w.rows = append(w.rows, Row{ID: r.ID, InsertedAt: r.InsertedAt, Time: r.Time})
	if w.file == nil {
		w.starts = append(w.starts, len(w.data))
		w.data = append(w.data, r.Data...)
	} else {
		w.shred.add(r.Data)
	}
	if len(w.rows) == GroupRows || w.bytes >= GroupBytes {
		return w.flush()
	}
	return nil
}

// Close writes what is left, and the file's end. It returns what the file has.
func (w *Writer) Close() (Summary, error) {
	if len(w.rows) > 0 || w.file == nil {
		if err := w.flush(); err != nil {
			return Summary{}, err
		}
	}
	groups, err := json.Marshal(w.summary.Groups)
	if err != nil {
		return Summary{}, err
	}
	w.file.SetKeyValueMetadata(groupsKey, string(groups))
	data := w.out.n
	if err := w.file.Close(); err != nil {
		return Summary{}, fmt.Errorf("finish the file: %w", err)
	}
	w.summary.Bytes, w.summary.TailBytes = w.out.n, w.out.n-data
	return w.summary, nil
}

// open decides on the columns, from the rows of the first group, and begins the file.
func (w *Writer) open() error {
	var s sample
	ends := append(w.starts[min(1, len(w.starts)):], len(w.data))
	for i, start := range w.starts {
		s.add(w.data[start:ends[i]])
	}
	columns := s.columns(w.registry)
	w.summary.Columns = columns
	marks := fileMarks{Version: formatVersion}
	for _, c := range columns {
		marks.Columns = append(marks.Columns, columnMarks{c.Path, c.Kind.String(), c.Form})
	}
	described, err := json.Marshal(marks)
	if err != nil {
		return err
	}
	schema := schemaOf(columns)
	options := []parquet.WriterOption{
		schema,
		parquet.CreatedBy("millrace", "1", ""),
		parquet.PageBufferSize(pageBytes),
		parquet.DataPageStatistics(false), // the page index has them
		parquet.ColumnIndexSizeLimit(func([]string) int { return 32 }),
		parquet.SkipPageBounds(restColumn),
		parquet.DictionaryMaxBytes(dictionaryBytes),
		parquet.KeyValueMetadata(columnsKey, string(described)),
	}
	var blooms []parquet.BloomFilterColumn
	for _, c := range columns {
		if c.bloom {
			blooms = append(blooms, parquet.SplitBlockFilter(bloomBits, c.Name))
		}
	}
	for _, c := range columns {
		if c.long {
			options = append(options, parquet.SkipPageBounds(c.Name))
		}
	}
	if len(blooms) > 0 {
		// At the end of the file, so that one read of the tail has them all.
		options = append(options, parquet.BloomFilters(blooms...), parquet.DeferBloomFiltersWithBuffers(parquet.NewBufferPool()))
	}
	w.file = parquet.NewGenericWriter[any](&w.out, options...)
	for _, name := range append([]string{idColumn, cameColumn, timeColumn, restColumn}, names(columns)...) {
		leaf, ok := schema.Lookup(name)
		if !ok {
			return fmt.Errorf("no column %q in the schema", name)
		}
		w.leaves = append(w.leaves, leaf.ColumnIndex)
	}
	w.shred = newShredder(columns)
	w.values = make([]parquet.Value, batchRows)
	for i, start := range w.starts {
		w.shred.add(w.data[start:ends[i]])
	}
	w.data, w.starts = nil, nil
	return nil
}

func names(columns []Column) []string {
	all := make([]string, len(columns))
	for i, c := range columns {
		all[i] = c.Name
	}
	return all
}

// schemaOf returns the schema of a file.
func schemaOf(columns []Column) *parquet.Schema {
	codec := &zstd.Codec{Level: zstd.SpeedDefault, Concurrency: 1}
	compressed := func(n parquet.Node) parquet.Node { return parquet.Compressed(n, codec) }
	group := parquet.Group{
		idColumn:   compressed(parquet.Encoded(parquet.UUID(), &parquet.DeltaByteArray)),
		cameColumn: compressed(parquet.Encoded(parquet.Timestamp(parquet.Microsecond), &parquet.DeltaBinaryPacked)),
		timeColumn: compressed(parquet.Optional(parquet.Encoded(parquet.Timestamp(parquet.Microsecond), &parquet.DeltaBinaryPacked))),
		restColumn: compressed(parquet.Optional(parquet.Encoded(parquet.JSON(), &parquet.Plain))),
	}
	for _, c := range columns {
		var n parquet.Node
		switch c.Kind {
		case Text:
			n = parquet.Encoded(parquet.String(), &parquet.Plain)
		case Double:
			n = parquet.Encoded(parquet.Leaf(parquet.DoubleType), &parquet.Plain)
		case Integer:
			n = parquet.Encoded(parquet.Int(64), &parquet.DeltaBinaryPacked)
		case Bool:
			n = parquet.Leaf(parquet.BooleanType)
		case Micros:
			n = parquet.Encoded(parquet.Timestamp(parquet.Microsecond), &parquet.DeltaBinaryPacked)
		case Nanos:
			n = parquet.Encoded(parquet.Timestamp(parquet.Nanosecond), &parquet.DeltaBinaryPacked)
		}
		if c.dictionary {
			n = parquet.Encoded(n, &parquet.RLEDictionary)
		}
		group[c.Name] = compressed(parquet.Optional(n))
	}
	return parquet.NewSchema("record", group)
}

// flush writes a row group.
func (w *Writer) flush() error {
	if w.file == nil {
		if err := w.open(); err != nil {
			return err
		}
	}
	rows := len(w.rows)
	if rows == 0 {
		return nil
	}
	w.summary.Groups = append(w.summary.Groups, w.marks())
	if err := w.column(0, func(i int) parquet.Value { return parquet.FixedLenByteArrayValue(w.rows[i].ID[:]) }, nil); err != nil {
		return err
	}
	if err := w.column(1, func(i int) parquet.Value { return parquet.Int64Value(w.rows[i].InsertedAt) }, nil); err != nil {
		return err
	}
	hasTime := make([]byte, rows)
	for i := range w.rows {
		if w.rows[i].Time != NoTime {
			hasTime[i] = 1
		}
	}
	if err := w.column(2, func(i int) parquet.Value { return parquet.Int64Value(w.rows[i].Time) }, hasTime); err != nil {
		return err
	}
	texts := func(v *vector) func(int) parquet.Value {
		return func(i int) parquet.Value { return parquet.ByteArrayValue(v.textAt(i)) }
	}
	if err := w.column(3, texts(&w.shred.rest), w.shred.rest.has); err != nil {
		return err
	}
	for k, c := range w.shred.columns {
		v := &w.shred.vectors[k]
		var value func(int) parquet.Value
		switch c.Kind {
		case Text:
			value = texts(v)
		case Double:
			value = func(i int) parquet.Value { return parquet.DoubleValue(v.numbers[i]) }
		case Bool:
			value = func(i int) parquet.Value { return parquet.BooleanValue(v.ints[i] == 1) }
		default:
			value = func(i int) parquet.Value { return parquet.Int64Value(v.ints[i]) }
		}
		if err := w.column(4+k, value, v.has); err != nil {
			return err
		}
	}
	if err := w.file.Flush(); err != nil {
		return fmt.Errorf("write a row group: %w", err)
	}
	w.summary.Rows += rows
	w.rows, w.bytes = w.rows[:0], 0
	w.shred.reset()
	w.hash = newRowHash()
	return nil
}

// column writes the values of a column for the rows of the group. has is nil if each row has one.
func (w *Writer) column(k int, value func(row int) parquet.Value, has []byte) error {
	leaf := w.leaves[k]
	out := w.file.ColumnWriters()[leaf]
	for from := 0; from < len(w.rows); from += batchRows {
		n := min(batchRows, len(w.rows)-from)
		for i := range n {
			switch {
			case has == nil:
				w.values[i] = value(from+i).Level(0, 0, leaf)
			case has[from+i] == 1:
				w.values[i] = value(from+i).Level(0, 1, leaf)
			default:
				w.values[i] = parquet.NullValue().Level(0, 0, leaf)
			}
		}
		if _, err := out.WriteRowValues(w.values[:n]); err != nil {
			return fmt.Errorf("write a column: %w", err)
		}
	}
	return nil
}

// marks returns what is said of the row group.
func (w *Writer) marks() GroupMarks {
	g := GroupMarks{Rows: len(w.rows), Hash: w.hash.digest.Sum64(), MinCame: math.MaxInt64, MinTime: math.MaxInt64, MaxCame: math.MinInt64, MaxTime: math.MinInt64}
	minID, maxID := &w.rows[0].ID, &w.rows[0].ID
	for i := range w.rows {
		r := &w.rows[i]
		if bytes.Compare(r.ID[:], minID[:]) < 0 {
			minID = &r.ID
		}
		if bytes.Compare(r.ID[:], maxID[:]) > 0 {
			maxID = &r.ID
		}
		g.MinCame, g.MaxCame = min(g.MinCame, r.InsertedAt), max(g.MaxCame, r.InsertedAt)
		g.MinTime, g.MaxTime = min(g.MinTime, r.at()), max(g.MaxTime, r.at())
		if r.Time != NoTime {
			g.OwnTimes++
		}
	}
	g.MinID, g.MaxID = bytes.Clone(minID[:]), bytes.Clone(maxID[:])
	for i, c := range w.shred.columns {
		var set ByteSet
		if c.Kind == Text {
			set = byteSetOf(w.shred.vectors[i].text)
		}
		g.Sets = append(g.Sets, set)
	}
	rest := &w.shred.rest
	for row, has := range rest.has {
		if has == 0 {
			continue
		}
		if g.RestKeys == nil {
			g.RestKeys = make([]byte, pathFilterBytes)
		}
		g.RestRows++
		if text := rest.textAt(row); len(text) > 0 {
			pathFilter(g.RestKeys).addValue(text, pathSeed)
		}
	}
	g.RestSet = byteSetOf(rest.text)
	return g
}
