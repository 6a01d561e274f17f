// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"sync"

	kyaml "github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// reserved are the variables that begin with TCBEE_ and are not settings.
var reserved = []string{
	"TCBEE_CONFIG",      // the configuration file where --config is not given
	"TCBEE_REQUIRE_BPF", // tests: what the kernel or the rights refuse is a failure, not a skip
	"TCBEE_TEST_EXEC",   // tests: the test binary acts as the command
	"TCBEE_OTELCOL",     // tests: the Collector to run
}

// Sources are the places that settings come from; later fields win over earlier ones, and all
// win over the defaults.
type Sources struct {
	File    string         // YAML; "": none
	Environ []string       // as of os.Environ; variables without the prefix TCBEE_ are ignored
	Flags   *pflag.FlagSet // those that Bind has tied to a key and that were given; nil: none
	Set     []string       // KEY=VALUE
}

// Layer tells where a value comes from.
type Layer string

// Layers.
const (
	LayerDefault Layer = "default"
	LayerFile    Layer = "file"
	LayerEnv     Layer = "environment"
	LayerFlag    Layer = "flag"
)

// Origin tells where exactly a value comes from.
type Origin struct {
	Layer Layer  `json:"layer"`
	Name  string `json:"name,omitempty"` // file and line, variable, or flag
}

func (o Origin) String() string {
	if o.Name == "" {
		return string(o.Layer)
	}
	return string(o.Layer) + " " + o.Name
}

// Faults are all the things that are wrong with a configuration. Each names its key path first.
type Faults []string

func (f Faults) Error() string { return strings.Join(f, "\n") }

// Unwrap makes each fault an error of its own.
func (f Faults) Unwrap() []error {
	out := make([]error, len(f))
	for i, s := range f {
		out[i] = errors.New(s)
	}
	return out
}

// Hint tells what to do.
func (f Faults) Hint() string {
	return `"tcbee-export config show" lists every key with its value and where that comes from`
}

// flagKey is the annotation of a flag that is a short way to give a key.
const flagKey = "tcbee-config-key"

// Bind ties a flag to the key that it sets.
func Bind(flags *pflag.FlagSet, flag, key string) {
	if table().byPath[key] == nil {
		panic("BUG: flag --" + flag + " is bound to the unknown key " + key)
	}
	if err := flags.SetAnnotation(flag, flagKey, []string{key}); err != nil {
		panic("BUG: " + err.Error())
	}
}

// table is the schema of Config.
var table = sync.OnceValue(func() *schema { return newSchema(reflect.TypeFor[Config]()) })

// Load gathers the configuration from its sources and validates it. The error, if any, is Faults:
// everything that is wrong, not only the first thing.
func Load(src Sources) (Config, Origins, error) {
	cfg := Default()
	l := loader{schema: table(), values: map[string]value{}}
	l.read(src)
	l.apply(reflect.ValueOf(&cfg).Elem())
	o := Origins{schema: l.schema, at: map[string]Origin{}}
	for path, v := range l.values {
		o.at[path] = v.from
	}
	l.standard(&cfg, src.Environ, o)
	for _, err := range flatten(cfg.Validate()) {
		l.fault(o.locate(err.Error()))
	}
	if len(l.faults) > 0 {
		return cfg, o, l.faults
	}
	return cfg, o, nil
}

// Origins tells for each key where its value comes from.
type Origins struct {
	schema *schema
	at     map[string]Origin
}

// Of returns the origin of the key's value.
func (o Origins) Of(path string) Origin {
	if at, ok := o.at[path]; ok {
		return at
	}
	return Origin{Layer: LayerDefault}
}

// locate adds to a fault that begins with a key path where the value came from.
func (o Origins) locate(fault string) string {
	path, _, ok := strings.Cut(fault, ":")
	if !ok {
		return fault
	}
	path, _, _ = strings.Cut(path, "[") // of an element
	if at, ok := o.at[path]; ok {
		return fault + " (" + at.String() + ")"
	}
	return fault
}

// flatten returns the errors that errors.Join put together.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range many.Unwrap() {
			out = append(out, flatten(e)...)
		}
		return out
	}
	return []error{err}
}

// value is what a source said of a key.
type value struct {
	raw  any
	from Origin
}

type loader struct {
	schema *schema
	values map[string]value
	faults Faults
}

func (l *loader) fault(f string) { l.faults = append(l.faults, f) }

func (l *loader) faultf(format string, args ...any) { l.fault(fmt.Sprintf(format, args...)) }

// read takes the layers in order: a key's last word counts, whole: lists and maps are replaced,
// not merged, so that what is in force can be read in one place.
func (l *loader) read(src Sources) {
	if src.File != "" {
		l.readFile(src.File)
	}
	l.readEnv(src.Environ)
	if src.Flags != nil {
		l.readFlags(src.Flags)
	}
	for _, kv := range src.Set {
		path, val, ok := strings.Cut(kv, "=")
		path = strings.TrimSpace(path)
		from := Origin{LayerFlag, "--set"}
		switch {
		case !ok:
			l.faultf("%q: --set takes KEY=VALUE, e.g. --set log.level=debug", kv)
		case l.schema.byPath[path] == nil:
			l.unknown(path, from)
		default:
			l.values[path] = value{val, from}
		}
	}
}

func (l *loader) readFile(name string) {
	raw, err := file.Provider(name).ReadBytes()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		l.faultf("%s: no such configuration file", name)
		return
	case err != nil:
		l.faultf("%s: %v", name, errors.Unwrap(err))
		return
	}
	k := koanf.New(".")
	tree, err := kyaml.Parser().Unmarshal(raw)
	if err == nil {
		err = k.Load(confmap.Provider(tree, ""), nil)
	}
	if err != nil {
		l.faultf("%s: %s", name, strings.TrimPrefix(strings.Join(strings.Fields(err.Error()), " "), "yaml: "))
		return
	}
	lines := map[string]int{}
	var doc yaml.Node
	if yaml.Unmarshal(raw, &doc) == nil && len(doc.Content) > 0 {
		keyLines(doc.Content[0], "", lines)
	}
	seen := map[string]bool{}
	l.tree(k.Raw(), "", func(path string) Origin {
		return Origin{LayerFile, fmt.Sprintf("%s:%d", name, lines[path])}
	}, seen)
}

// keyLines notes the line of every key in a YAML document.
func keyLines(n *yaml.Node, prefix string, lines map[string]int) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind != yaml.MappingNode {
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		path := prefix + n.Content[i].Value
		lines[path] = n.Content[i].Line
		keyLines(n.Content[i+1], path+".", lines)
	}
}

// tree walks a nested map along the schema.
func (l *loader) tree(m map[string]any, prefix string, from func(path string) Origin, seen map[string]bool) {
	for _, name := range sortedKeys(m) {
		path, raw := prefix+name, m[name]
		switch {
		case l.schema.byPath[path] != nil:
			if seen[path] {
				l.faultf("%s: given twice (%s)", path, from(path))
			}
			seen[path] = true
			if raw != nil { // "key:" with nothing after it leaves what was there
				l.values[path] = value{raw, from(path)}
			}
		case l.schema.sections[path]:
			switch sub := raw.(type) {
			case nil:
			case map[string]any:
				l.tree(sub, path+".", from, seen)
			default:
				l.faultf("%s: %s stands where a group of keys belongs (%s)", path, show(raw), from(path))
			}
		default:
			l.unknown(path, from(path))
		}
	}
}

func (l *loader) unknown(path string, from Origin) {
	if near := nearest(path, l.schema.paths()); near != "" {
		l.faultf("%s: unknown key; did you mean %s? (%s)", path, near, from)
		return
	}
	l.faultf("%s: unknown key (%s)", path, from)
}

func (l *loader) readEnv(environ []string) {
	k := koanf.New("\x00") // variables name whole paths: nothing is to be split
	err := k.Load(env.Provider("\x00", env.Opt{
		Prefix:      envPrefix,
		EnvironFunc: func() []string { return slices.Sorted(slices.Values(environ)) },
		TransformFunc: func(name, val string) (string, any) {
			for _, r := range reserved {
				if r == name {
					return "", nil
				}
			}
			key := l.schema.byEnv[name]
			if key == nil {
				if near := nearest(name, l.schema.envs()); near != "" {
					l.faultf("%s: unknown environment variable; did you mean %s?", name, near)
				} else {
					l.faultf("%s: unknown environment variable; those that begin with %s are settings", name, envPrefix)
				}
				return "", nil
			}
			return key.Path, val
		},
	}), nil)
	if err != nil {
		panic("BUG: " + err.Error()) // the provider reads from memory and cannot fail
	}
	for path, raw := range k.Raw() {
		l.values[path] = value{raw, Origin{LayerEnv, l.schema.byPath[path].Env}}
	}
}

func (l *loader) readFlags(flags *pflag.FlagSet) {
	k := koanf.New("\x00")
	name := map[string]string{}
	err := k.Load(posflag.ProviderWithFlag(flags, "\x00", nil, func(f *pflag.Flag) (string, any) {
		keys := f.Annotations[flagKey]
		if len(keys) == 0 || !f.Changed {
			return "", nil
		}
		name[keys[0]] = f.Name
		if list, ok := f.Value.(pflag.SliceValue); ok {
			return keys[0], list.GetSlice()
		}
		return keys[0], f.Value.String()
	}), nil)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	for path, raw := range k.Raw() {
		l.values[path] = value{raw, Origin{LayerFlag, "--" + name[path]}}
	}
}

// standard lets the OTEL_* variables of the OpenTelemetry specification say what nothing else has said.
func (l *loader) standard(cfg *Config, environ []string, o Origins) {
	before := *cfg
	err := cfg.Export.ApplyEnv(func(name string) (string, bool) {
		for _, kv := range environ {
			if val, ok := strings.CutPrefix(kv, name+"="); ok {
				return val, true
			}
		}
		return "", false
	}, func(key string) bool {
		_, ok := l.values[key]
		return ok
	})
	for _, err := range flatten(err) {
		l.fault(err.Error())
	}
	was, is := reflect.ValueOf(before), reflect.ValueOf(*cfg)
	for i := range l.schema.keys {
		k := &l.schema.keys[i]
		if !reflect.DeepEqual(was.FieldByIndex(k.index).Interface(), is.FieldByIndex(k.index).Interface()) {
			o.at[k.Path] = Origin{LayerEnv, "OTEL_*"}
		}
	}
}

// apply sets the fields that have values.
func (l *loader) apply(cfg reflect.Value) {
	for i := range l.schema.keys {
		k := &l.schema.keys[i]
		v, ok := l.values[k.Path]
		if !ok {
			continue
		}
		if err := k.set(cfg.FieldByIndex(k.index), v.raw); err != nil {
			for _, e := range flatten(err) {
				if k.Secret() {
					e = errors.New("the value is not of the right form (not shown: it is a secret)")
				}
				l.faultf("%s: %v (%s)", k.Path, e, v.from)
			}
		}
	}
}
