package config

import (
	"errors"
	"net/url"
	"path"
	"strings"
)

// Archive holds the setting of the services that share the archive.
type Archive struct {
	ArchiveURL ArchiveURL `env:"ARCHIVE_URL" help:"Where the archive keeps its files: a folder that worker and query service share, or a bucket of an S3 store, whose keys come from AWS_ACCESS_KEY_ID and so on; empty: there is no archive."`
}

type archiveStore struct{}

// ArchiveURL is the file or s3 URL of the archive's store.
type ArchiveURL = Secret[archiveStore]

func (archiveStore) takes() string {
	return "a URL such as file:///var/lib/millrace/archive or s3://bucket/prefix"
}

func (archiveStore) check(value string) error {
	u, err := parseURL(value, "file://", "s3://")
	switch {
	case err != nil:
		return err
	case u.user != "":
		return errors.New("holds a user or password; the keys of an S3 store are taken from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	case u.query != "" || strings.Contains(value, "?"):
		return errors.New("has parameters, and there are none")
	}
	_, _, err = SplitArchiveURL(ArchiveURL(value))
	return err
}

// SplitArchiveURL returns the bucket and the prefix that an s3 URL names, or "" and the folder that a file URL names.
func SplitArchiveURL(u ArchiveURL) (bucket, location string, err error) {
	parts := splitURL(string(u))
	if strings.EqualFold(parts.scheme, "file") {
		switch {
		case parts.hosts != "":
			return "", "", errors.New("names a host; a folder's URL has three slashes, as in file:///var/lib/millrace/archive")
		case path.Clean("/"+parts.path) == "/":
			return "", "", errors.New("names no folder")
		}
		folder, err := url.PathUnescape(parts.path)
		return "", path.Clean(folder), err
	}
	if n := len(parts.hosts); n < 3 || n > 63 || strings.Trim(parts.hosts, "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" {
		return "", "", errors.New("names no bucket: 3 to 63 of a-z, 0-9, dot and hyphen")
	}
	prefix := strings.Trim(parts.path, "/")
	if prefix != "" && path.Clean(prefix) != prefix || strings.HasPrefix(prefix, "..") {
		return "", "", errors.New("has a prefix with an empty part or dots alone")
	}
	return parts.hosts, prefix, nil
}
