package api

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"millrace/internal/testenv"
)

// journalOf returns entries of a journal, from one number to before another. Each second one has a field of 3 KB with newlines. The first ten happened a week ago.
func journalOf(from, to int) string {
	var b strings.Builder
	now := time.Now()
	for i := from; i < to; i++ {
		at := now.Add(time.Duration(i) * time.Millisecond)
		fmt.Fprintf(&b, "__CURSOR=s=1;i=%d\n__REALTIME_TIMESTAMP=%d\nMESSAGE=line %d\n", i, at.UnixMicro(), i)
		if i%2 == 0 {
			value := strings.Repeat("x\n", 1500)
			b.WriteString("LONG\n" + string(binary.LittleEndian.AppendUint64(nil, uint64(len(value)))) + value + "\n")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// An upload that broke off is sent again from its beginning, with what was logged since: each entry is stored once.
func TestAJournalThatIsUploadedAgainIsStoredOnce(t *testing.T) {
	a := startForUploads(t, nil)
	whole := journalOf(0, 60)
	stored := make(map[uuid.UUID]string)
	collect := func() int {
		t.Helper()
		maps.Copy(stored, a.published(t))
		return len(stored)
	}
	first := a.uploadTo(t, http.MethodPost, "/upload", "Content-Type: application/vnd.fdo.journal\r\n")
	half := whole[:strings.Index(whole, "__CURSOR=s=1;i=31\n")-700] // in the middle of an entry's field
	for len(half) > 0 {
		n := min(10_000, len(half))
		first.send(half[:n])
		half = half[n:]
	}
	testenv.Eventually(t, 30*time.Second, "the entries that came are stored", func() bool { return collect() == 30 })
	if err := first.conn.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the first answer is lost
		again := a.uploadTo(t, http.MethodPost, "/upload", "Content-Type: application/vnd.fdo.journal\r\n")
		again.send(whole)
		time.Sleep(200 * time.Millisecond) // so that it is taken in parts, mostly
		again.end()
		if got := again.text(); got != "200 OK.\n" {
			t.Errorf("got %s", got)
		}
		if n := collect(); n != 60 {
			t.Errorf("%d entries are stored, want 60", n)
		}
	}
	resp, err := a.client.Post(a.url+"/upload", "application/vnd.fdo.journal", strings.NewReader(whole+"MESSAGE=without a cursor\n\n"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() // nobody needs it
	if n := collect(); resp.StatusCode != http.StatusOK || n != 61 {
		t.Errorf("got %d; %d entries are stored, want 61", resp.StatusCode, n)
	}
	bad := a.uploadTo(t, http.MethodPost, "/upload", "")
	bad.send("MESSAGE=x\n\nno journal\n\n")
	bad.end()
	if got := bad.text(); !strings.HasPrefix(got, "400 the text is no entry of a journal") {
		t.Errorf("got %s", got)
	}
}

// text returns the status and the body of the answer.
func (u *longUpload) text() string {
	u.t.Helper()
	resp, body := u.read()
	return fmt.Sprintf("%d %s", resp.StatusCode, body)
}
