// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// redacted stands in place of a secret that is set.
const redacted = "[REDACTED]"

// Setting is one key with the value in force.
type Setting struct {
	Key    string `json:"key"`
	Env    string `json:"env"`
	Value  any    `json:"value"` // as it would be written in the file; secrets are redacted
	Source Origin `json:"source"`
}

// Settings lists every key of cfg in order, with where its value comes from.
func Settings(cfg Config, o Origins) []Setting {
	return settings(table(), reflect.ValueOf(cfg), o)
}

func settings(s *schema, cfg reflect.Value, o Origins) []Setting {
	out := make([]Setting, 0, len(s.keys))
	for i := range s.keys {
		k := &s.keys[i]
		out = append(out, Setting{k.Path, k.Env, k.format(cfg.FieldByIndex(k.index)), o.Of(k.Path)})
	}
	return out
}

// Tree returns cfg as nested maps, as it would be written in the file; secrets are redacted.
func Tree(cfg Config) map[string]any {
	out := map[string]any{}
	for _, s := range Settings(cfg, Origins{}) {
		m := out
		parts := strings.Split(s.Key, ".")
		for _, p := range parts[:len(parts)-1] {
			if m[p] == nil {
				m[p] = map[string]any{}
			}
			m = m[p].(map[string]any)
		}
		m[parts[len(parts)-1]] = s.Value
	}
	return out
}

// format turns a field into what would be written in the file.
func (k *Key) format(v reflect.Value) any {
	if k.Secret() && !v.IsZero() && (v.Kind() != reflect.Map && v.Kind() != reflect.Slice || v.Len() > 0) {
		if v.Kind() != reflect.Map {
			return redacted
		}
		names := map[string]any{}
		for _, name := range v.MapKeys() {
			names[name.String()] = redacted
		}
		return names
	}
	if k.isBytes() {
		if v.CanUint() {
			return sizeText(int64(v.Uint()))
		}
		return sizeText(v.Int())
	}
	return plain(v)
}

// sizeText keeps small numbers numbers.
func sizeText(n int64) any {
	if s := FormatSize(n); s != strconv.FormatInt(n, 10) {
		return s
	}
	return n
}

func plain(v reflect.Value) any {
	if v.Type() == durationType {
		return formatDuration(time.Duration(v.Int()))
	}
	if m, ok := v.Interface().(encoding.TextMarshaler); ok && v.Kind() != reflect.Pointer {
		if text, err := m.MarshalText(); err == nil {
			return string(text)
		}
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return plain(v.Elem())
	case reflect.Slice:
		list := make([]any, v.Len())
		for i := range list {
			list[i] = plain(v.Index(i))
		}
		return list
	case reflect.Map:
		m := map[string]any{}
		for _, name := range v.MapKeys() {
			m[fmt.Sprint(name.Interface())] = plain(v.MapIndex(name))
		}
		return m
	case reflect.Struct:
		m := map[string]any{}
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("mapstructure"), ",")
			if name != "" && name != "-" {
				m[name] = plain(v.Field(i))
			}
		}
		return m
	case reflect.String:
		return v.String()
	case reflect.Bool:
		return v.Bool()
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return v.Int()
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return v.Uint()
	case reflect.Float32, reflect.Float64:
		return v.Float()
	}
	panic("BUG: configuration value of type " + v.Type().String())
}

// YAML writes settings as a configuration file that can be read back (but for the secrets), with
// each value's source as a comment.
func YAML(settings []Setting) string {
	type line struct{ text, comment string }
	var lines []line
	var open []string
	width := 0
	for _, s := range settings {
		parts := strings.Split(s.Key, ".")
		sections := parts[:len(parts)-1]
		common := 0
		for common < len(sections) && common < len(open) && sections[common] == open[common] {
			common++
		}
		for i := common; i < len(sections); i++ {
			lines = append(lines, line{text: strings.Repeat("  ", i) + sections[i] + ":"})
		}
		open = sections
		text := strings.Repeat("  ", len(sections)) + parts[len(parts)-1] + ": " + flow(s.Value)
		lines = append(lines, line{text, s.Source.String()})
		if len(text) <= 48 {
			width = max(width, len(text))
		}
	}
	var b strings.Builder
	for _, l := range lines {
		if l.comment == "" {
			b.WriteString(l.text + "\n")
			continue
		}
		fmt.Fprintf(&b, "%-*s  # %s\n", width, l.text, l.comment)
	}
	return b.String()
}

// flow writes a value on one line.
func flow(v any) string {
	var n yaml.Node
	if err := n.Encode(v); err != nil {
		panic("BUG: " + err.Error())
	}
	setFlow(&n)
	out, err := yaml.Marshal(&n)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return strings.Join(strings.Fields(string(out)), " ")
}

func setFlow(n *yaml.Node) {
	n.Style |= yaml.FlowStyle
	if n.Kind == yaml.ScalarNode {
		n.Style &^= yaml.FlowStyle
	}
	for _, c := range n.Content {
		setFlow(c)
	}
}
