// Package config reads settings from the environment, and from .env in the working directory where the
// environment is silent, into the services' Config structs.
//
// A setting is a struct field with these tags:
//
//	env         the variable's name
//	envDefault  the value when the variable is unset or empty
//	min, max    bounds, both allowed, in the field's own notation
//	oneof       the values allowed, separated by spaces
//	help        what it means and its unit, one sentence for help texts and the README
//
// The types say what else a value must look like. A value that is not taken is an error of one line that names
// the variable, what it got and what it takes.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/joho/godotenv"
)

// Setting describes one variable.
type Setting struct {
	Name, Default, Takes, Help string
}

// Load fills dst, a pointer to a struct of settings, from the environment and .env.
func Load(dst any) error {
	environ, err := Environ()
	if err != nil {
		return err
	}
	return LoadFrom(environ, dst)
}

// Environ returns the variables of .env in the working directory, if there is one, overlaid by the
// environment's. Empty ones are left out: empty means unset.
func Environ() (map[string]string, error) {
	environ, err := godotenv.Read(".env")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf(".env: %w", err)
	}
	if environ == nil {
		environ = make(map[string]string)
	}
	for _, kv := range os.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		environ[k] = v
	}
	for k, v := range environ {
		if v == "" {
			delete(environ, k)
		}
	}
	return environ, nil
}

// LoadFrom fills dst, a pointer to a struct of settings, from environ alone.
func LoadFrom(environ map[string]string, dst any) error {
	if environ == nil {
		environ = make(map[string]string) // to the library nil would mean the process's own
	}
	v := reflect.ValueOf(dst).Elem()
	fields := settingFields(v.Type())
	err := env.ParseWithOptions(dst, env.Options{Environment: environ, FuncMap: parsers})
	var parse env.ParseError
	if errors.As(err, &parse) {
		for _, f := range fields {
			if f.Name == parse.Name {
				return refused(f, environ[f.Tag.Get("env")])
			}
		}
	}
	if err != nil {
		return err
	}
	for _, f := range fields {
		if !inBounds(f, v.FieldByIndex(f.Index).Interface()) {
			return refused(f, environ[f.Tag.Get("env")])
		}
	}
	return nil
}

// Check returns an error for the first field of a Config, or of a pointer to one, that is outside its bounds: for
// one that was not made by Load.
func Check(config any) error {
	v := reflect.Indirect(reflect.ValueOf(config))
	for _, f := range settingFields(v.Type()) {
		if value := v.FieldByIndex(f.Index).Interface(); !inBounds(f, value) {
			return refused(f, fmt.Sprint(value))
		}
	}
	return nil
}

// Describe lists the settings of a Config struct, in the order of its fields.
func Describe(config any) []Setting {
	var out []Setting
	for _, f := range settingFields(reflect.TypeOf(config)) {
		out = append(out, Setting{
			Name:    f.Tag.Get("env"),
			Default: f.Tag.Get("envDefault"),
			Takes:   takes(f),
			Help:    f.Tag.Get("help"),
		})
	}
	return out
}

func settingFields(t reflect.Type) []reflect.StructField {
	return slices.DeleteFunc(reflect.VisibleFields(t), func(f reflect.StructField) bool { return f.Tag.Get("env") == "" })
}

func refused(f reflect.StructField, got string) error {
	return fmt.Errorf("%s: got %q, takes %s", f.Tag.Get("env"), got, takes(f))
}

// takes says in words what a field's type and bounds allow.
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
		kind = "a duration such as 10s, 50ms or 24h"
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

func inBounds(f reflect.StructField, value any) bool {
	if oneof := f.Tag.Get("oneof"); oneof != "" {
		return slices.ContainsFunc(strings.Fields(oneof), func(one string) bool { return compare(value, one) == 0 })
	}
	low, high := f.Tag.Get("min"), f.Tag.Get("max")
	return (low == "" || compare(value, low) >= 0) && (high == "" || compare(value, high) <= 0)
}

// compare compares a parsed value with a bound written in a tag. A bound that does not parse is a mistake in
// this program.
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
