// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "tcbee.yaml")
	require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
	return name
}

func TestPrecedence(t *testing.T) {
	file := write(t, "log:\n  level: warn\n  format: json\n")
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.String("output", "", "")
	flags.String("log-level", "", "")
	Bind(flags, "output", "output")
	Bind(flags, "log-level", "log.level")

	cfg, o, err := Load(Sources{})
	require.NoError(t, err)
	require.Empty(t, cmp.Diff(Default(), cfg, cmp.Exporter(func(reflect.Type) bool { return true })))
	require.Equal(t, Origin{Layer: LayerDefault}, o.Of("log.level"))

	cfg, o, err = Load(Sources{File: file})
	require.NoError(t, err)
	require.Equal(t, Log{"warn", "json"}, cfg.Log)
	require.Equal(t, Origin{LayerFile, file + ":2"}, o.Of("log.level"))

	env := []string{"TCBEE_LOG_LEVEL=error", "TCBEE_REQUIRE_BPF=1", "HOME=/root", "TCBEE_CONFIG=x"}
	cfg, o, err = Load(Sources{File: file, Environ: env, Flags: flags})
	require.NoError(t, err)
	require.Equal(t, Log{"error", "json"}, cfg.Log)
	require.Equal(t, "environment TCBEE_LOG_LEVEL", o.Of("log.level").String())

	require.NoError(t, flags.Parse([]string{"--log-level=debug", "--output=file:x"}))
	cfg, o, err = Load(Sources{File: file, Environ: env, Flags: flags})
	require.NoError(t, err)
	require.Equal(t, Log{"debug", "json"}, cfg.Log)
	require.Equal(t, "file:x", cfg.Output)
	require.Equal(t, "flag --log-level", o.Of("log.level").String())

	cfg, o, err = Load(Sources{File: file, Environ: env, Flags: flags, Set: []string{"log.level=info", "log.format=text"}})
	require.NoError(t, err)
	require.Equal(t, Log{"info", "text"}, cfg.Log)
	require.Equal(t, "flag --set", o.Of("log.format").String())
}

func TestAllFaultsAtOnce(t *testing.T) {
	file := write(t, `
log:
  levl: debug
  format: xml
lgo:
  level: x
output: [a]
`)
	_, _, err := Load(Sources{
		File:    file,
		Environ: []string{"TCBEE_LOG_LEVLE=debug", "TCBEE_LOG_LEVEL=loud", "TCBEE_BANANA_SPLIT=1"},
		Set:     []string{"log.fromat=x", "nothing"},
	})
	var faults Faults
	require.ErrorAs(t, err, &faults)
	require.Empty(t, cmp.Diff(Faults{
		"lgo: unknown key; did you mean log? (file FILE:5)",
		"log.levl: unknown key; did you mean log.level? (file FILE:3)",
		"TCBEE_BANANA_SPLIT: unknown environment variable; those that begin with TCBEE_ are settings",
		"TCBEE_LOG_LEVLE: unknown environment variable; did you mean TCBEE_LOG_LEVEL?",
		"log.fromat: unknown key; did you mean log.format? (flag --set)",
		`"nothing": --set takes KEY=VALUE, e.g. --set log.level=debug`,
		"output: [a] is not one word (file FILE:7)",
		`log.level: "loud" is none of debug, info, warn, error (environment TCBEE_LOG_LEVEL)`,
		`log.format: "xml" is neither text nor json (file FILE:4)`,
	}, replace(faults, file)))
	require.NotEmpty(t, faults.Hint())
}

func replace(f Faults, file string) Faults {
	out := make(Faults, len(f))
	for i := range f {
		out[i] = strings.ReplaceAll(f[i], file, "FILE")
	}
	return out
}

func TestBadFiles(t *testing.T) {
	tests := map[string]struct{ text, want string }{
		"syntax":           {"log:\n  level: [", "FILE: line 2: did not find expected node content"},
		"not a mapping":    {"- a\n", "FILE: unmarshal errors: line 1: cannot unmarshal !!seq into map[string]interface {}"},
		"twice":            {"output: otlp\noutput: otlp\n", `FILE: unmarshal errors: line 2: mapping key "output" already defined at line 1`},
		"twice, dotted":    {"log.level: info\nlog: {level: debug}\n", "log.level: given twice (file FILE:2)"},
		"word for section": {"log: debug\n", `log: "debug" stands where a group of keys belongs (file FILE:1)`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			file := write(t, tt.text)
			_, _, err := Load(Sources{File: file})
			var faults Faults
			require.ErrorAs(t, err, &faults)
			require.Empty(t, cmp.Diff(Faults{tt.want}, replace(faults, file)))
		})
	}
	_, _, err := Load(Sources{File: "/nowhere/tcbee.yaml"})
	require.EqualError(t, err, "/nowhere/tcbee.yaml: no such configuration file")
	_, _, err = Load(Sources{File: t.TempDir()})
	require.ErrorContains(t, err, "is a directory")
}

func TestEmptyFileAndEmptyKeysLeaveDefaults(t *testing.T) {
	for _, text := range []string{"", "log:\n", "log: {level: }\noutput:\n", "# nothing\n"} {
		cfg, _, err := Load(Sources{File: write(t, text)})
		require.NoError(t, err, text)
		require.Empty(t, cmp.Diff(Default(), cfg, cmp.Exporter(func(reflect.Type) bool { return true })))
	}
}

func TestSecretsAreRedacted(t *testing.T) {
	s := newSchema(reflect.TypeFor[fields]())
	l := loader{schema: s, values: map[string]value{}}
	l.readEnv([]string{"TCBEE_HEADERS=authorization=Bearer hunter2,x=hunter2"})
	var f fields
	l.apply(reflect.ValueOf(&f).Elem())
	require.Empty(t, l.faults)
	require.Equal(t, "Bearer hunter2", string(f.Headers["authorization"]))
	text := YAML(settings(s, reflect.ValueOf(f), Origins{}))
	require.NotContains(t, text, "hunter2")
	require.Contains(t, text, "headers: {authorization: '[REDACTED]', x: '[REDACTED]'}")

	l = loader{schema: s, values: map[string]value{}}
	l.readEnv([]string{"TCBEE_HEADERS=hunter2"})
	l.apply(reflect.ValueOf(&f).Elem())
	require.NotEmpty(t, l.faults)
	require.NotContains(t, l.faults.Error(), "hunter2")
}
