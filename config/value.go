// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
)

// isBytes tells whether the key is a number of bytes, which may be written with a unit. Its name
// says so: it ends in "bytes".
func (k *Key) isBytes() bool {
	switch k.Type.Kind() {
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint32, reflect.Uint64:
		return strings.HasSuffix(k.Path, "bytes")
	}
	return false
}

// Secret tells whether the value is never to be printed: it is of a type that hides itself (such
// as configopaque.String), or its name says that it holds credentials.
func (k *Key) Secret() bool {
	t := k.Type
	for t.Kind() == reflect.Map || t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Name() == "String" && strings.HasSuffix(t.PkgPath(), "configopaque") {
		return true
	}
	last := k.Path[strings.LastIndexByte(k.Path, '.')+1:]
	switch last {
	case "headers", "password", "token", "secret", "encryption_key", "key_pem", "authorization":
		return true
	}
	return false
}

var durationType = reflect.TypeFor[time.Duration]()

// set gives the field v of key k the value raw, which is what the YAML parser made of it, or a
// string from the environment or a flag. The error says what is wrong with raw and gives an
// example of what is right; it does not name the key.
func (k *Key) set(v reflect.Value, raw any) error {
	if k.isBytes() {
		n, err := parseSize(raw)
		if err != nil {
			return err
		}
		return setInt(v, n)
	}
	return setValue(v, raw)
}

func setValue(v reflect.Value, raw any) error {
	if raw == nil {
		return errors.New("has no value")
	}
	t := v.Type()
	if v.CanAddr() {
		if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
			s, err := toString(raw)
			if err != nil {
				return err
			}
			return u.UnmarshalText([]byte(s))
		}
	}
	if t == durationType {
		d, err := parseDuration(raw)
		if err != nil {
			return err
		}
		v.SetInt(int64(d))
		return nil
	}
	switch t.Kind() {
	case reflect.String:
		s, err := toString(raw)
		if err != nil {
			return err
		}
		v.SetString(s)
		return nil
	case reflect.Bool:
		b, err := parseBool(raw)
		if err != nil {
			return err
		}
		v.SetBool(b)
		return nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := parseInt(raw)
		if err != nil {
			return err
		}
		return setInt(v, n)
	case reflect.Float32, reflect.Float64:
		f, err := parseFloat(raw)
		if err != nil {
			return err
		}
		v.SetFloat(f)
		return nil
	case reflect.Pointer:
		p := reflect.New(t.Elem())
		if err := setValue(p.Elem(), raw); err != nil {
			return err
		}
		v.Set(p)
		return nil
	case reflect.Slice:
		if scalar(t.Elem()) {
			return setList(v, raw)
		}
	case reflect.Map:
		if t.Key().Kind() == reflect.String && scalar(t.Elem()) {
			return setMap(v, raw)
		}
	}
	return setTree(v, raw)
}

// scalar tells whether a value of type t is written as one word.
func scalar(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Slice, reflect.Map, reflect.Struct, reflect.Pointer, reflect.Interface:
		return reflect.PointerTo(t).Implements(textUnmarshaler)
	}
	return true
}

// setList takes a YAML list, or one word with commas between the elements, as the environment
// has it. The empty word is the empty list.
func setList(v reflect.Value, raw any) error {
	var elems []any
	switch x := raw.(type) {
	case []any:
		elems = x
	case []string:
		for _, e := range x {
			elems = append(elems, e)
		}
	case string:
		for e := range strings.SplitSeq(x, ",") {
			if e = strings.TrimSpace(e); e != "" {
				elems = append(elems, e)
			}
		}
	case map[string]any:
		return errors.New("is a group of keys, not a list")
	default:
		elems = []any{raw}
	}
	list := reflect.MakeSlice(v.Type(), len(elems), len(elems))
	var errs []error
	for i, e := range elems {
		if err := setValue(list.Index(i), e); err != nil {
			errs = append(errs, fmt.Errorf("element %d: %w", i+1, err))
		}
	}
	v.Set(list)
	return errors.Join(errs...)
}

// setMap takes a YAML mapping, or "name=value,name=value" as the environment has it.
func setMap(v reflect.Value, raw any) error {
	pairs := map[string]any{}
	switch x := raw.(type) {
	case map[string]any:
		pairs = x
	case string:
		for e := range strings.SplitSeq(x, ",") {
			if e = strings.TrimSpace(e); e == "" {
				continue
			}
			name, val, ok := strings.Cut(e, "=")
			if !ok {
				return errors.New("is not a list of name=value with commas between")
			}
			pairs[strings.TrimSpace(name)] = strings.TrimSpace(val)
		}
	default:
		return fmt.Errorf("%s is not a mapping of names to values", show(raw))
	}
	m := reflect.MakeMapWithSize(v.Type(), len(pairs))
	var errs []error
	for _, name := range sortedKeys(pairs) {
		e := reflect.New(v.Type().Elem()).Elem()
		if err := setValue(e, pairs[name]); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
		m.SetMapIndex(reflect.ValueOf(name).Convert(v.Type().Key()), e)
	}
	v.Set(m)
	return errors.Join(errs...)
}

// setTree is for values that are neither words nor lists of words, such as a list of structs.
func setTree(v reflect.Value, raw any) error {
	if _, ok := raw.(string); ok {
		return errors.New("can be given in a configuration file only")
	}
	out := reflect.New(v.Type())
	dec, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		Result: out.Interface(), ErrorUnused: true, WeaklyTypedInput: false,
		DecodeHook: mapstructure.ComposeDecodeHookFunc(
			mapstructure.StringToTimeDurationHookFunc(), mapstructure.TextUnmarshallerHookFunc()),
	})
	if err != nil {
		panic("BUG: " + err.Error())
	}
	if err := dec.Decode(raw); err != nil {
		return errors.New(strings.Join(strings.Fields(err.Error()), " "))
	}
	v.Set(out.Elem())
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// show quotes words and prints everything else as it is.
func show(raw any) string {
	if s, ok := raw.(string); ok {
		return strconv.Quote(s)
	}
	return fmt.Sprint(raw)
}

func toString(raw any) (string, error) {
	switch x := raw.(type) {
	case string:
		return x, nil
	case int, int64, uint64, float64, bool:
		return fmt.Sprint(x), nil
	}
	return "", fmt.Errorf("%s is not one word", show(raw))
}

func parseBool(raw any) (bool, error) {
	switch x := raw.(type) {
	case bool:
		return x, nil
	case string:
		switch strings.ToLower(x) {
		case "true", "yes", "on", "1":
			return true, nil
		case "false", "no", "off", "0":
			return false, nil
		}
	}
	return false, fmt.Errorf("%s is neither true nor false", show(raw))
}

func parseInt(raw any) (int64, error) {
	switch x := raw.(type) {
	case int:
		return int64(x), nil
	case int64:
		return x, nil
	case uint64:
		if x <= math.MaxInt64 {
			return int64(x), nil
		}
	case float64:
		if x == math.Trunc(x) && math.Abs(x) < 1<<53 {
			return int64(x), nil
		}
	case string:
		if n, err := strconv.ParseInt(strings.ReplaceAll(x, "_", ""), 0, 64); err == nil {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%s is not a whole number", show(raw))
}

func parseFloat(raw any) (float64, error) {
	switch x := raw.(type) {
	case float64:
		return x, nil
	case int:
		return float64(x), nil
	case string:
		if f, err := strconv.ParseFloat(x, 64); err == nil && !math.IsInf(f, 0) && !math.IsNaN(f) {
			return f, nil
		}
	}
	return 0, fmt.Errorf("%s is not a number", show(raw))
}

func setInt(v reflect.Value, n int64) error {
	switch v.Kind() {
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if n < 0 {
			return fmt.Errorf("%d is below zero", n)
		}
		if v.OverflowUint(uint64(n)) {
			return fmt.Errorf("%d is above %d", n, ^uint64(0)>>(64-v.Type().Bits()))
		}
		v.SetUint(uint64(n))
	default:
		if v.OverflowInt(n) {
			return fmt.Errorf("%d does not fit in %d bits", n, v.Type().Bits())
		}
		v.SetInt(n)
	}
	return nil
}

// parseDuration takes what time.ParseDuration takes, and days ("30d", "1d12h").
func parseDuration(raw any) (time.Duration, error) {
	wrong := fmt.Errorf("%s is not a duration, e.g. 250ms, 10s, 2h or 30d", show(raw))
	s, ok := raw.(string)
	if !ok {
		if n, err := parseInt(raw); err == nil && n == 0 {
			return 0, nil
		}
		return 0, wrong
	}
	s = strings.TrimSpace(s)
	var days time.Duration
	if head, rest, found := strings.Cut(s, "d"); found {
		n, err := strconv.ParseUint(head, 10, 16)
		if err != nil {
			return 0, wrong
		}
		days, s = time.Duration(n)*24*time.Hour, rest
		if s == "" {
			return days, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, wrong
	}
	return days + d, nil
}

// sizeUnits are the units of sizes: powers of 1024 with an i, of 1000 without.
var sizeUnits = []struct {
	name string
	mult uint64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	{"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"T", 1 << 40}, {"B", 1},
}

// parseSize takes a number of bytes, plain or with one of sizeUnits.
func parseSize(raw any) (int64, error) {
	wrong := fmt.Errorf("%s is not a size, e.g. 64MiB", show(raw))
	s, ok := raw.(string)
	if !ok {
		n, err := parseInt(raw)
		if err != nil {
			return 0, wrong
		}
		return n, nil
	}
	s = strings.TrimSpace(s)
	mult := uint64(1)
	for _, u := range sizeUnits {
		if head, found := strings.CutSuffix(s, u.name); found {
			s, mult = strings.TrimSpace(head), u.mult
			break
		}
	}
	if n, err := strconv.ParseUint(strings.ReplaceAll(s, "_", ""), 10, 63); err == nil {
		hi, lo := bits.Mul64(n, mult)
		if hi != 0 || lo > math.MaxInt64 {
			return 0, wrong
		}
		return int64(lo), nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f < 0 || !(f*float64(mult) < math.MaxInt64) {
		return 0, wrong
	}
	return int64(f * float64(mult)), nil
}

// FormatSize writes n bytes in the largest unit that leaves a whole number.
func FormatSize(n int64) string {
	for _, u := range []struct {
		name string
		mult int64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n != 0 && n%u.mult == 0 {
			return strconv.FormatInt(n/u.mult, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// formatDuration is Duration.String without units that are zero: "10m", not "10m0s".
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
