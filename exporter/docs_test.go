// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestPageTellsEveryKeyAttributeAndVariable holds docs/export.md and the code together.
func TestPageTellsEveryKeyAttributeAndVariable(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "docs", "export.md"))
	require.NoError(t, err)
	page := string(raw)
	keys := map[string]bool{}
	var walk func(prefix string, typ reflect.Type)
	walk = func(prefix string, typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			tag, squash, _ := strings.Cut(f.Tag.Get("mapstructure"), ",")
			switch {
			case squash != "":
				walk(prefix, f.Type)
			case f.Type.Kind() == reflect.Struct:
				walk(prefix+tag+".", f.Type)
			default:
				keys[prefix+tag] = true
			}
		}
	}
	walk("export.", reflect.TypeFor[Config]())
	for key := range keys {
		require.Contains(t, page, "`"+key+"`")
	}
	for _, key := range regexp.MustCompile("`(export\\.[a-z_.]+)`").FindAllStringSubmatch(page, -1) {
		require.True(t, keys[key[1]], "%s is on the page only", key[1])
	}
	for _, name := range allAttributes {
		require.Contains(t, page, "`"+name+"`")
	}

	asked := map[string]bool{}
	cfg := DefaultConfig()
	require.NoError(t, cfg.ApplyEnv(func(name string) (string, bool) { asked[name] = true; return "", false }, nil))
	for name := range asked {
		require.Contains(t, page, "`"+name+"`")
	}
	for _, name := range regexp.MustCompile("`(OTEL_[A-Z_]+)`").FindAllStringSubmatch(page, -1) {
		require.True(t, asked[name[1]], "%s is on the page only", name[1])
	}
}
