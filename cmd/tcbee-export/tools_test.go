// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcbee/tcbee-export/internal/pipeline"
)

func TestFlowsOfAPart(t *testing.T) {
	dir := makeSpool(t)
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"one end":      {[]string{"--connection", ":40002"}, "1 connections, 0 B out"},
		"two ends":     {[]string{"--connection", "198.51.100.2:443-192.0.2.1:40001"}, "1 connections, 97.7 KiB out"},
		"either":       {[]string{"--connection", ":40001", "--connection", ":40002"}, "2 connections"},
		"none":         {[]string{"--connection", "203.0.113.0/24"}, "0 connections"},
		"before":       {[]string{"--to", "2026-01-02 03:04:05.1"}, "1 connections, 93.8 KiB out"},
		"after":        {[]string{"--from", "150ms", "--to", "-1s"}, "1 connections, 0 B out"},
		"by the table": {[]string{"--exact", "--from", "150ms", "--to", "-1s"}, "1 connections, 0 B out"},
	} {
		t.Run(name, func(t *testing.T) {
			out, errs, code := tcbee(t, append([]string{"flows", dir}, tt.args...)...)
			require.Zero(t, code, errs)
			require.Contains(t, out, tt.want)
		})
	}
	out, errs, code := tcbee(t, "flows", dir, "--json")
	require.Zero(t, code, errs)
	require.NotContains(t, out, "goodput", "it is not known without --exact")
	out, errs, code = tcbee(t, "flows", dir, "--json", "--exact")
	require.Zero(t, code, errs)
	require.Contains(t, out, `"goodput_out": 100000`)
}

func TestSpoolTools(t *testing.T) {
	dir := makeSpool(t)
	tmp := t.TempDir()
	cut, other, anon := filepath.Join(tmp, "cut"), filepath.Join(tmp, "other"), filepath.Join(tmp, "anon")

	out, errs, code := tcbee(t, "spool", "cut", dir, cut, "--connection", ":40002")
	require.Zero(t, code, errs)
	require.Contains(t, out, "2 of 109 events, 1 sessions")
	out, _, code = tcbee(t, "spool", "info", cut)
	require.Zero(t, code)
	require.Regexp(t, `tc_egress\s+-\s+1\s+-\s+-\s+-`, out)
	out, _, code = tcbee(t, "spool", "info", cut, "--json")
	require.Zero(t, code)
	require.NotContains(t, out, `"seen"`)

	_, errs, code = tcbee(t, "spool", "merge", other, dir, cut)
	require.Equal(t, codeUsage, code)
	require.Contains(t, errs, "session 0000000000000007 is in "+dir+" too")
	require.NoDirExists(t, other)
	out, errs, code = tcbee(t, "spool", "merge", other, cut, "--json")
	require.Zero(t, code, errs)
	var made pipeline.Derived
	require.NoError(t, json.Unmarshal([]byte(out), &made))
	require.Equal(t, 1, made.Sessions)
	require.EqualValues(t, 2, made.Events)

	key := filepath.Join(tmp, "key")
	_, errs, code = tcbee(t, "spool", "anonymize", dir, anon, "--key-file", key)
	require.Equal(t, codeUsage, code)
	require.Contains(t, errs, "--generate-key")
	_, errs, code = tcbee(t, "spool", "anonymize", dir, anon, "--key-file", key, "--generate-key")
	require.Zero(t, code, errs)
	if runtime.GOOS != "windows" {
		st, err := os.Stat(key)
		require.NoError(t, err)
		require.EqualValues(t, 0o600, st.Mode().Perm())
		require.NoError(t, os.Chmod(key, 0o644))
		_, errs, code = tcbee(t, "spool", "anonymize", cut, filepath.Join(tmp, "anon2"), "--key-file", key)
		require.Zero(t, code, errs)
		require.Contains(t, errs, "others than its owner may read the key")
	}
	out, errs, code = tcbee(t, "flows", anon)
	require.Zero(t, code, errs)
	require.Contains(t, out, "2 connections, 97.7 KiB out, 0 B in, 1 segments retransmitted")
	require.NotContains(t, out, "192.0.2.1")
	out, _, code = tcbee(t, "spool", "info", anon, "--json")
	require.Zero(t, code)
	require.NotContains(t, out, "testhost")
}

func TestSpoolToolsRefuse(t *testing.T) {
	dir := makeSpool(t)
	full := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(full, "letter"), []byte("dear"), 0o600))
	newKey := filepath.Join(t.TempDir(), "key")
	for name, tt := range map[string]struct {
		args []string
		want string
		code int
	}{
		"a key for nothing":   {[]string{"anonymize", dir, full, "--key-file", newKey, "--generate-key"}, "exists and is not empty", codeUsage},
		"a key for a file":    {[]string{"anonymize", dir, full + "/letter/new", "--key-file", newKey, "--generate-key"}, "not a directory", codeUsage},
		"a key that is there": {[]string{"anonymize", dir, full + "/new", "--key-file", full + "/letter", "--generate-key"}, "leave out --generate-key to use the key that is there", codeUsage},
		"nothing to cut":      {[]string{"cut", dir, full + "/new"}, "give --from, --to or --connection", codeUsage},
		"a time like that":    {[]string{"cut", dir, full + "/new", "--from", "noon"}, `--from: "noon" is neither a time`, codeUsage},
		"an end like that":    {[]string{"cut", dir, full + "/new", "--connection", "host:80"}, `"host" is no address`, codeUsage},
		"an empty window":     {[]string{"cut", dir, full + "/new", "--from", "2s", "--to", "1s"}, "is not before", codeUsage},
		"a full directory":    {[]string{"cut", dir, full, "--from", "1s"}, "exists and is not empty", codeUsage},
		"itself":              {[]string{"cut", dir, dir, "--from", "1s"}, "exists and is not empty", codeUsage},
		"no spool to cut":     {[]string{"cut", full, full + "/new", "--from", "1s"}, "not a spool", codeSpool},
		"no spool to merge":   {[]string{"merge", full + "/new", dir, full + "/none"}, "no spool at", codeSpool},
		"no key":              {[]string{"anonymize", dir, full + "/new"}, "--key-file is missing", codeUsage},
		"a bad key":           {[]string{"anonymize", dir, full + "/new", "--key-file", full + "/letter"}, "holds no key of 32 bytes", codeUsage},
	} {
		t.Run(name, func(t *testing.T) {
			_, errs, code := tcbee(t, append([]string{"spool"}, tt.args...)...)
			require.Equal(t, tt.code, code, errs)
			require.Contains(t, errs, tt.want)
			entries, err := os.ReadDir(full)
			require.NoError(t, err)
			require.Len(t, entries, 1)
			letter, err := os.ReadFile(filepath.Join(full, "letter"))
			require.NoError(t, err)
			require.Equal(t, "dear", string(letter))
			require.NoFileExists(t, newKey)
		})
	}
}

// TestEncryptedSpool: the key comes from a file or the environment; without it, info tells what can be told.
func TestEncryptedSpool(t *testing.T) {
	dir := makeSpool(t)
	tmp := t.TempDir()
	secret, key, wrong := filepath.Join(tmp, "secret"), filepath.Join(tmp, "key"), filepath.Join(tmp, "wrong")
	require.NoError(t, os.WriteFile(key, []byte(strings.Repeat("0f", 32)+"\n"), 0o600))
	require.NoError(t, os.WriteFile(wrong, []byte(strings.Repeat("f0", 32)+"\n"), 0o600))
	_, errs, code := tcbee(t, "spool", "merge", secret, dir, "--set", "spool.encryption.key_file="+key)
	require.Zero(t, code, errs)

	out, errs, code := tcbee(t, "spool", "info", secret, "--set", "spool.encryption.key_file="+key)
	require.Zero(t, code, errs)
	require.Contains(t, out, "(version 1), encrypted\n")
	require.Contains(t, out, "testhost")
	cmd := command(t, "flows", secret, "--set", "spool.encryption.key_env=WHERE_THE_KEY_IS")
	cmd.Env = append(cmd.Env, "WHERE_THE_KEY_IS="+strings.Repeat("0f", 32))
	out, errs, code = finish(t, cmd)
	require.Zero(t, code, errs)
	require.Contains(t, out, "2 connections, 97.7 KiB out")

	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"none":  {nil, " is encrypted"},
		"wrong": {[]string{"--set", "spool.encryption.key_file=" + wrong}, "the key does not open "},
	} {
		t.Run(name, func(t *testing.T) {
			out, errs, code := tcbee(t, append([]string{"spool", "info", secret}, tt.args...)...)
			require.Equal(t, codeSpool, code)
			require.Contains(t, out, ", encrypted\n")
			require.Contains(t, out, "3 in 1 segments")
			require.NotContains(t, out, "testhost")
			require.Contains(t, errs, tt.want)
			require.Contains(t, errs, "hint: ")
			for _, args := range [][]string{{"flows"}, {"spool", "verify"}, {"replay"}} {
				out, errs, code := tcbee(t, append(append(args, secret), tt.args...)...)
				require.Equal(t, codeSpool, code)
				require.Empty(t, out)
				require.Contains(t, errs, tt.want)
			}
		})
	}
}
