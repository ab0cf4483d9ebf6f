// Package config reads settings into the services' Config structs. It reads each from the environment, or else from
// .env in the working directory.
//
// A setting is a struct field with these tags:
//
//	env         the variable's name
//	envDefault  the value when the variable is unset or empty
//	min, max    bounds, both allowed, in the field's own notation
//	oneof       the values allowed, separated by spaces
//	help        what it means and its unit, one sentence for help texts and the README
//	is          file: the value is the name of a file
//
// The field's type says what else a value must look like. A value that is not taken is an error of one line that names
// the variable, what it got and what it takes. If the value may be a secret, the error says what is wrong with it and
// does not repeat it.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/caarlos0/env/v11"
	"github.com/joho/godotenv"
)

// Setting describes one variable.
type Setting struct {
	Name, Default, Takes, Help string

	Field reflect.StructField // its type and tags
}

// IsSecret reports whether the setting may hold a password, and so is shown nowhere.
func (s Setting) IsSecret() bool { return isSecret(s.Field) }

// isSecret reports whether a field's values may hold a password.
func isSecret(f reflect.StructField) bool {
	_, ok := reflect.Zero(f.Type).Interface().(interface{ Check() error })
	return ok
}

// Load fills dst, a pointer to a struct of settings, from the environment and .env. The error names the first setting
// that is not taken.
func Load(dst any) error {
	environ, err := Environ()
	if err != nil {
		return err
	}
	return LoadFrom(environ, dst)
}

// Environ returns the variables of the environment, and those of .env in the working directory that the environment
// lacks. It leaves out empty ones, because empty means unset.
func Environ() (map[string]string, error) {
	text, err := os.ReadFile(".env")
	var environ map[string]string
	if err == nil {
		environ, err = parseFile(string(text))
	}
	var path *fs.PathError
	switch {
	case err == nil || errors.Is(err, fs.ErrNotExist):
	case errors.As(err, &path):
		return nil, fmt.Errorf(".env: %w", path.Err)
	default: // the library's error repeats what it could not read
		return nil, fmt.Errorf(".env: line %d is not NAME=value", lineOfMistake(string(text)))
	}
	if environ == nil {
		environ = make(map[string]string)
	}
	for _, kv := range os.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		environ[k] = v
	}
	for k, v := range environ {
		if k == "" || v == "" { // a value without a name would go to every field that is no setting
			delete(environ, k)
		}
	}
	return environ, nil
}

// parseFile returns the variables in the text of .env. Unlike godotenv it refuses a value without a name.
func parseFile(text string) (map[string]string, error) {
	environ, err := godotenv.Unmarshal(text)
	if _, found := environ[""]; err == nil && found {
		return nil, errors.New("a value without a name")
	}
	return environ, err
}

// lineOfMistake returns the number of the first line that can't be understood: the one after the longest beginning of
// text that parseFile takes.
func lineOfMistake(text string) int {
	lines := strings.SplitAfter(text, "\n")
	understood := len(lines)
	for ; understood > 0; understood-- {
		if _, err := parseFile(strings.Join(lines[:understood], "")); err == nil {
			break
		}
	}
	return understood + 1
}

// LoadFrom fills dst, a pointer to a struct of settings, from environ alone.
func LoadFrom(environ map[string]string, dst any) error {
	if environ == nil {
		environ = make(map[string]string) // the library would take nil for the process's environment
	}
	v := reflect.ValueOf(dst).Elem()
	fields := settingFields(v.Type())
	err := env.ParseWithOptions(dst, env.Options{Environment: environ, FuncMap: parsers})
	var parse env.ParseError
	if errors.As(err, &parse) {
		for _, f := range fields {
			if f.Name == parse.Name {
				return refused(f, environ[f.Tag.Get("env")], parse.Err)
			}
		}
	}
	if err != nil {
		return err
	}
	for _, f := range fields {
		if err := check(f, v.FieldByIndex(f.Index).Interface(), environ[f.Tag.Get("env")]); err != nil {
			return err
		}
	}
	return nil
}

// Check returns an error for the first field that is outside its bounds or that its type does not take. config is a
// Config or a pointer to one. Check is for a Config that Load has not made.
func Check(config any) error {
	v := reflect.Indirect(reflect.ValueOf(config))
	for _, f := range settingFields(v.Type()) {
		value := v.FieldByIndex(f.Index).Interface()
		if secret, ok := value.(interface{ Check() error }); ok && !v.FieldByIndex(f.Index).IsZero() {
			if err := secret.Check(); err != nil {
				return refused(f, "", err)
			}
		}
		if err := check(f, value, fmt.Sprint(value)); err != nil {
			return err
		}
	}
	return nil
}

// Describe returns the settings of a Config struct, in the order of its fields.
func Describe(config any) []Setting {
	var out []Setting
	for _, f := range settingFields(reflect.TypeOf(config)) {
		out = append(out, Setting{
			Name:    f.Tag.Get("env"),
			Default: f.Tag.Get("envDefault"),
			Takes:   takes(f),
			Help:    f.Tag.Get("help"),
			Field:   f,
		})
	}
	return out
}

// settingFields returns the fields of a struct that are settings.
func settingFields(t reflect.Type) []reflect.StructField {
	return slices.DeleteFunc(reflect.VisibleFields(t), func(f reflect.StructField) bool { return f.Tag.Get("env") == "" })
}

// check returns an error if a field's value is outside its bounds, or if it should be the name of a file and can't be
// one.
func check(f reflect.StructField, value any, got string) error {
	if f.Tag.Get("is") == "file" {
		return checkFileName(f, got)
	}
	if !inBounds(f, value) {
		return refused(f, got, nil)
	}
	return nil
}

// refused returns the error for a value that is not taken because of err. If the setting is a Secret, err says what is
// wrong without repeating the value. The value of another setting may be a secret by mistake, so it goes through Shown.
func refused(f reflect.StructField, got string, err error) error {
	if isSecret(f) {
		return fmt.Errorf("%s: %w", f.Tag.Get("env"), err)
	}
	return fmt.Errorf("%s: got %s, takes %s", f.Tag.Get("env"), Shown(got), takes(f))
}

// longestFileName is Linux's PATH_MAX.
const longestFileName = 4096

// checkFileName returns an error for a value that may be a file's secret contents, or a URL with a password, and not a
// file's name. An error from opening the file would repeat the value.
func checkFileName(f reflect.StructField, value string) error {
	switch {
	case strings.ContainsFunc(value, unicode.IsControl), strings.HasPrefix(value, "-----BEGIN"), len(value) > longestFileName,
		strings.HasPrefix(value, KeyPrefix):
		return fmt.Errorf("%s: takes the name of a file, not what it contains", f.Tag.Get("env"))
	case strings.Contains(value, "://"):
		return fmt.Errorf("%s: takes the name of a file, not a URL", f.Tag.Get("env"))
	}
	return nil
}

// KeyPrefix is the beginning of every API key.
const KeyPrefix = "mr_"

// MayHoldSecret reports whether a word from outside, such as an argument on the command line, looks as if it held a
// password or an API key. Such a word must not be shown.
func MayHoldSecret(s string) bool {
	return strings.Contains(s, "://") || strings.Contains(s, "@") || strings.Contains(strings.ToLower(s), "password") || strings.HasPrefix(s, KeyPrefix)
}

// Shown returns s in quotation marks. If s may hold a secret, it returns words that say so instead.
func Shown(s string) string {
	if MayHoldSecret(s) {
		return "something that may hold a secret"
	}
	return strconv.Quote(s)
}

// takes returns in words what a field's type and bounds allow.
func takes(f reflect.StructField) string {
	if oneof := f.Tag.Get("oneof"); oneof != "" {
		return strings.Join(strings.Fields(oneof), ", ")
	}
	var kind string
	switch f.Type {
	case reflect.TypeFor[int]():
		kind = "a whole number"
	case reflect.TypeFor[bool]():
		kind = "true or false"
	case reflect.TypeFor[time.Duration]():
		kind = "a duration such as 50ms, 10s, 24h or 30d"
	case reflect.TypeFor[string]():
		kind = "text"
	default:
		kind = reflect.Zero(f.Type).Interface().(interface{ Takes() string }).Takes()
	}
	low, high := f.Tag.Get("min"), f.Tag.Get("max")
	switch {
	case low != "" && high != "":
		kind += " from " + low + " to " + high
	case low != "":
		kind += ", at least " + low
	}
	return kind
}

// inBounds reports whether a field's value is within its bounds, or one of its words.
func inBounds(f reflect.StructField, value any) bool {
	if oneof := f.Tag.Get("oneof"); oneof != "" {
		return slices.ContainsFunc(strings.Fields(oneof), func(one string) bool { return compare(value, one) == 0 })
	}
	low, high := f.Tag.Get("min"), f.Tag.Get("max")
	return (low == "" || compare(value, low) >= 0) && (high == "" || compare(value, high) <= 0)
}

// compare compares a parsed value with a bound from a tag, as cmp.Compare does. A bound that does not parse is a mistake
// in this program, and panics.
func compare(value any, bound string) int {
	if s, ok := value.(string); ok {
		return cmp.Compare(s, bound)
	}
	b, err := parsers[reflect.TypeOf(value)](bound)
	if err != nil {
		panic(fmt.Sprintf("bound %q: %v", bound, err))
	}
	switch v := value.(type) {
	case int:
		return cmp.Compare(v, b.(int))
	case Bytes:
		return cmp.Compare(v, b.(Bytes))
	case time.Duration:
		return cmp.Compare(v, b.(time.Duration))
	}
	panic(fmt.Sprintf("no bounds for %T", value))
}
