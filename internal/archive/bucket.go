package archive

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"millrace/internal/config"
	"millrace/internal/retry"
)

const (
	// partBytes is the size of the parts that a large file is sent in. S3 takes 5 MiB at least, and 10,000 parts.
	partBytes = 8 << 20
	// stallTime is how long a read waits for the next byte. With two tries that is less than QUERY_TIMEOUT, so that a search can tell why it
	// fails.
	stallTime = 3 * time.Second
	// readTries is how often a read is tried, and triesTime how long after its beginning no further try begins.
	readTries = 4
	triesTime = 4 * time.Second
	// sendTime is how long a part may take to be sent and answered, all tries included, and answerTime how long the answer to one try.
	sendTime   = 2 * time.Minute
	answerTime = time.Minute
	// keyTime is how long the machine may take to tell its role's key.
	keyTime = 5 * time.Second
	// abortTime is how long a store may take to forget an upload that has failed.
	abortTime = 5 * time.Second
)

// Bucket is a store in a bucket of an S3-compatible server.
type Bucket struct {
	place   config.ArchivePlace
	hasKey  bool        // settings gave one
	reading *minio.Core // tries once
	writing *minio.Core

	transports []*http.Transport
	outage
}

// OpenBucket returns the store in a bucket. It does not look for it.
func OpenBucket(place config.ArchivePlace, settings config.Archive) (*Bucket, error) {
	b := &Bucket{place: place, hasKey: settings.ArchiveKeyID != ""}
	switch {
	case b.hasKey && settings.ArchiveSecret == "":
		return nil, errors.New("AWS_ACCESS_KEY_ID is set, and AWS_SECRET_ACCESS_KEY is not")
	case !b.hasKey && settings.ArchiveSecret != "":
		return nil, errors.New("AWS_SECRET_ACCESS_KEY is set, and AWS_ACCESS_KEY_ID is not")
	}
	keys := credentials.NewStaticV4(string(settings.ArchiveKeyID), string(settings.ArchiveSecret), string(settings.ArchiveToken))
	if !b.hasKey {
		keys = credentials.NewChainCredentials([]credentials.Provider{
			&credentials.FileAWSCredentials{},
			&credentials.IAM{Client: &http.Client{Timeout: keyTime}},
		})
	}
	for _, client := range []struct {
		core    **minio.Core
		tries   int
		headers time.Duration
	}{{&b.reading, 1, stallTime}, {&b.writing, 4, answerTime}} {
		transport, err := minio.DefaultTransport(!place.Plain)
		if err != nil {
			return nil, fmt.Errorf("SSL_CERT_FILE: %w", err)
		}
		transport.DialContext = (&net.Dialer{Timeout: stallTime}).DialContext
		transport.TLSHandshakeTimeout = stallTime
		transport.ResponseHeaderTimeout = client.headers
		transport.MaxIdleConnsPerHost = 64 // as many as searches read at once
		b.transports = append(b.transports, transport)
		*client.core, err = minio.NewCore(cmp.Or(place.Endpoint, "s3.amazonaws.com"), &minio.Options{
			Creds: keys, Secure: !place.Plain, Region: place.Region, Transport: transport, MaxRetries: client.tries,
		})
		if err != nil {
			return nil, fmt.Errorf("ARCHIVE_URL: %w", err)
		}
	}
	return b, nil
}

func (b *Bucket) closeIdle() {
	for _, transport := range b.transports {
		transport.CloseIdleConnections()
	}
}

// String returns where the bucket is, for people.
func (b *Bucket) String() string {
	return "the bucket " + b.place.Bucket + " at " + cmp.Or(b.place.Endpoint, "s3.amazonaws.com")
}

// key returns the key of a file.
func (b *Bucket) key(name string) (string, error) {
	if !fs.ValidPath(name) || name == "." {
		return "", fmt.Errorf("%q is no name of a file", name)
	}
	return path.Join(b.place.Prefix, name), nil
}

// Create is that of Store. It keeps one part in memory. If it fails, no reader sees the file, unless only the answer to the last request was
// lost.
func (b *Bucket) Create(ctx context.Context, name string, write func(w io.Writer) error) error {
	key, err := b.key(name)
	if err != nil {
		return err
	}
	if err := b.refusal(time.Now()); err != nil {
		return err
	}
	u := &upload{ctx: ctx, bucket: b, key: key}
	if err = write(u); err == nil {
		err = u.finish()
	}
	if err != nil && u.id != "" {
		// What a crash leaves, Delete forgets. No reader sees it.
		aborting, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTime)
		defer cancel()
		_ = b.writing.AbortMultipartUpload(aborting, b.place.Bucket, key, u.id)
	}
	return err
}

// upload is a file that is being sent.
type upload struct {
	ctx    context.Context
	bucket *Bucket
	key    string
	part   []byte // that has not been sent
	id     string // of the upload in parts; empty: none has been sent
	sent   []minio.CompletePart
}

// Write is that of io.Writer. A part is sent when it is full.
func (u *upload) Write(data []byte) (n int, err error) {
	for n < len(data) {
		if err := u.ctx.Err(); err != nil {
			return n, err
		}
		if len(u.part) == partBytes {
			if err := u.send(); err != nil {
				return n, err
			}
		}
		some := data[n:min(len(data), n+partBytes-len(u.part))]
		u.part = append(slices.Grow(u.part, min(partBytes-len(u.part), max(len(some), 64<<10))), some...)
		n += len(some)
	}
	return n, nil
}

// send sends a part.
func (u *upload) send() (err error) {
	b := u.bucket
	ctx, cancel := context.WithTimeout(u.ctx, sendTime)
	defer cancel()
	if u.id == "" {
		if u.id, err = b.writing.NewMultipartUpload(ctx, b.place.Bucket, u.key, putOptions); err != nil {
			return b.failure(u.ctx, "begin the upload of "+u.key, err)
		}
	}
	number := len(u.sent) + 1
	part, err := b.writing.PutObjectPart(ctx, b.place.Bucket, u.key, u.id, number, bytes.NewReader(u.part), int64(len(u.part)), minio.PutObjectPartOptions{})
	if err != nil {
		return b.failure(u.ctx, "send a part of "+u.key, err)
	}
	u.sent = append(u.sent, minio.CompletePart{PartNumber: number, ETag: part.ETag})
	u.part = u.part[:0]
	return nil
}

// finish sends what is left, and makes a file of the parts.
func (u *upload) finish() (err error) {
	if u.id != "" {
		if err := u.send(); err != nil {
			return err
		}
	}
	b := u.bucket
	ctx, cancel := context.WithTimeout(u.ctx, sendTime)
	defer cancel()
	if u.id == "" {
		_, err = b.writing.Client.PutObject(ctx, b.place.Bucket, u.key, bytes.NewReader(u.part), int64(len(u.part)), putOptions)
	} else {
		_, err = b.writing.CompleteMultipartUpload(ctx, b.place.Bucket, u.key, u.id, u.sent, putOptions)
	}
	if err != nil {
		return b.failure(u.ctx, "write "+u.key, err)
	}
	b.succeed()
	return nil
}

// putOptions are those of all files. DisableMultipart is for those that are one part.
var putOptions = minio.PutObjectOptions{ContentType: "application/vnd.apache.parquet", DisableMultipart: true}

// Delete is that of Store. The parts of an upload that was never finished, which take room, are removed too, if the key may see them. Else a
// rule of the bucket has to do that.
func (b *Bucket) Delete(ctx context.Context, name string) error {
	key, err := b.key(name)
	if err != nil {
		return err
	}
	if err := b.refusal(time.Now()); err != nil {
		return err
	}
	removing, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	if err := b.writing.RemoveObject(removing, b.place.Bucket, key, minio.RemoveObjectOptions{}); err != nil {
		if err = b.failure(ctx, "delete "+key, err); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := b.writing.RemoveIncompleteUpload(removing, b.place.Bucket, key); err != nil && mayPass(err) {
		return b.failure(ctx, "forget the unfinished uploads of "+key, err)
	}
	b.succeed()
	return nil
}

// Open is that of Store. It does not ask the server.
func (b *Bucket) Open(_ context.Context, name string, size int64) (Object, error) {
	key, err := b.key(name)
	if err != nil {
		return nil, err
	}
	return &bucketObject{b, key, size}, nil
}

// bucketObject is a file of a bucket.
type bucketObject struct {
	bucket *Bucket
	key    string
	size   int64
}

// Close is that of Object.
func (o *bucketObject) Close() error { return nil }

// ReadAt is that of RangeReader. What a cut connection has brought is kept, and the rest is asked for.
func (o *bucketObject) ReadAt(ctx context.Context, b []byte, at int64) (n int, err error) {
	if at >= o.size {
		return 0, io.EOF
	}
	wanted := b[:min(int64(len(b)), o.size-at)]
	if len(wanted) == 0 {
		return 0, nil
	}
	if err := o.bucket.refusal(time.Now()); err != nil {
		return 0, err
	}
	n, err = o.bucket.readAll(ctx, o.key, wanted, at, o.size)
	if err == nil && n < len(b) {
		err = io.EOF
	}
	return n, err
}

// readAll reads a part of a file of a size, with several tries.
func (b *Bucket) readAll(ctx context.Context, key string, wanted []byte, at, size int64) (n int, err error) {
	began := time.Now()
	pause := retry.NewBackoff()
	for try := 1; ; try++ {
		m, failed := b.read(ctx, key, wanted[n:], at+int64(n), size)
		n += m
		switch {
		case failed == nil:
			b.succeed()
			return n, nil
		case ctx.Err() != nil:
			return n, ctx.Err()
		case errors.Is(failed, ErrCorrupt):
			b.succeed()
			return n, failed
		case !mayPass(failed) || try == readTries || time.Since(began) > triesTime:
			return n, b.failure(ctx, "read "+key, failed)
		}
		if err := retry.Sleep(ctx, pause.NextBackOff()); err != nil {
			return n, err
		}
	}
}

var errStalled = fmt.Errorf("nothing came for %v", stallTime)

// read reads a part of a file once. It returns how much came.
func (b *Bucket) read(ctx context.Context, key string, wanted []byte, at, size int64) (n int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(stallTime, func() { cancel(errStalled) })
	defer stalled.Stop()
	defer func() {
		if cause := context.Cause(ctx); err != nil && errors.Is(cause, errStalled) {
			err = cause
		}
	}()
	var options minio.GetObjectOptions
	if err := options.SetRange(at, at+int64(len(wanted))-1); err != nil {
		return 0, err
	}
	body, _, header, err := b.reading.GetObject(ctx, b.place.Bucket, key, options)
	if err != nil {
		return 0, err
	}
	defer body.Close() // what is left of it is not wanted
	// Content-Range: bytes 0-9/1234
	_, total, _ := strings.Cut(header.Get("Content-Range"), "/")
	switch has, err := strconv.ParseInt(total, 10, 64); {
	case err != nil:
		return 0, errors.New("the store does not answer with the range that it was asked for")
	case has != size && size >= 0:
		return 0, otherSize(has, size)
	}
	for n < len(wanted) {
		m, err := body.Read(wanted[n:])
		n += m
		stalled.Reset(stallTime)
		switch {
		case n == len(wanted):
		case errors.Is(err, io.EOF):
			return n, errors.New("the connection was cut")
		case err != nil:
			return n, err
		}
	}
	return n, nil
}

// mayPass reports whether a later try may succeed where one has failed.
func mayPass(err error) bool {
	var answer minio.ErrorResponse
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &certificate):
		return false
	case errors.As(err, &answer) && answer.StatusCode > 0:
		return answer.StatusCode >= 500 && answer.StatusCode != http.StatusNotImplemented || answer.StatusCode == http.StatusTooManyRequests || answer.StatusCode == http.StatusRequestTimeout
	}
	return true
}

// failure returns what is wrong with the store, and notes whether it is away. doing is what failed.
func (b *Bucket) failure(ctx context.Context, doing string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if mayPass(err) {
		return b.fail(time.Now(), fmt.Sprintf("%s: %s: %v", b, doing, err))
	}
	var answer minio.ErrorResponse
	if !errors.As(err, &answer) {
		return fmt.Errorf("%s: %w (SSL_CERT_FILE names the certificates that are trusted)", b, err)
	}
	b.succeed() // it has answered
	switch answer.Code {
	case minio.NoSuchKey:
		return fmt.Errorf("%s: %s: %w", b, doing, fs.ErrNotExist)
	case minio.NoSuchBucket:
		return fmt.Errorf("%s does not exist", b)
	case minio.AccessDenied:
		if !b.hasKey {
			return fmt.Errorf("%s: %s: access denied; AWS_ACCESS_KEY_ID is not set, and the key, if any, is the machine's", b, doing)
		}
		return fmt.Errorf("%s: %s: access denied to the key in AWS_ACCESS_KEY_ID (without s3:ListBucket, what is not there is denied too)", b, doing)
	case "InvalidAccessKeyId", "XAdminUserNotFound": // the second is what Versity's gateway says
		return fmt.Errorf("%s: the store does not know the key in AWS_ACCESS_KEY_ID", b)
	case "SignatureDoesNotMatch":
		return fmt.Errorf("%s: AWS_SECRET_ACCESS_KEY is not that of the key in AWS_ACCESS_KEY_ID", b)
	case "InvalidRange", strconv.Itoa(http.StatusRequestedRangeNotSatisfiable):
		return fmt.Errorf("%w: %s: it is shorter than it was written", ErrCorrupt, doing)
	}
	return fmt.Errorf("%s: %s: %s (%s, status %d)", b, doing, answer.Message, answer.Code, answer.StatusCode)
}

// look is that of watched: it looks for a file that is not there.
func (b *Bucket) look(ctx context.Context) error {
	key, err := b.key("v1/nothing")
	if err != nil {
		return err
	}
	_, err = b.readAll(ctx, key, make([]byte, 1), 0, -1)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
