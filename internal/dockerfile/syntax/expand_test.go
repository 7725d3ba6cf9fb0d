package syntax

import (
	"reflect"
	"strings"
	"testing"
)

type vars map[string]string

func (v vars) Get(name string) (string, bool) {
	s, ok := v[name]
	return s, ok
}

func TestExpand(t *testing.T) {
	env := vars{
		"a": "apple", "empty": "", "path": "/usr/local/bin", "dots": "a.b.c", "q": `it's "x"`, "two": "x y",
		"stars": "a*b", "greek": "αβγ", "1": "one", "windows": `C:\dir\x`,
	}
	for _, tt := range []struct{ in, want string }{
		{"plain", "plain"},
		{"$a", "apple"},
		{"${a}", "apple"},
		{"$a$a", "appleapple"},
		{"$unset.", "."},
		{"$", "$"},
		{"$.", "$."},
		{"100$", "100$"},
		{`\$a`, "$a"},
		{`'$a'`, "$a"},
		{`"$a"`, "apple"},
		{`"\$a \x"`, `$a \x`},
		{`a\ b`, "a b"},
		{`"it's"`, "it's"},
		{`trailing\`, "trailing"},
		{"$1", "one"},
		{"${a:-x}", "apple"},
		{"${empty:-x}", "x"},
		{"${empty-x}", ""},
		{"${unset:-x}", "x"},
		{"${unset-x}", "x"},
		{"${unset-${a}}", "apple"},
		{"${unset:-${other:-${a}}}", "apple"},
		{"${unset:-'$a'}", "$a"},
		{"${a:+x}", "x"},
		{"${empty:+x}", ""},
		{"${empty+x}", "x"},
		{"${unset+x}", ""},
		{"${a:?no}", "apple"},
		{"${empty?no}", ""},
		{"${path#/}", "usr/local/bin"},
		{"${path#*/}", "usr/local/bin"},
		{"${path##*/}", "bin"},
		{"${path%/*}", "/usr/local"},
		{"${path%%/*}", ""},
		{"${dots%.*}", "a.b"},
		{"${dots%%.*}", "a"},
		{"${dots#?.}", "b.c"},
		{"${dots#x}", "a.b.c"},
		{`${stars#a\*}`, "b"},
		{`${windows#"C:\dir"}`, `\x`},
		{`${windows#"C:\\dir\\"}`, "x"},
		{`${windows/dir/"d\e"}`, `C:\d\\e\x`},
		{"${dots/./-}", "a-b.c"},
		{"${dots//./-}", "a-b-c"},
		{`${path/\/usr/}`, "/local/bin"},
		{"${path//\\//_}", "_usr_local_bin"},
		{"${greek%γ}", "αβ"},
		{"${greek#?}", "βγ"},
		{"${dots//?/$a}", strings.Repeat("apple", 5)},
	} {
		x, err := Expander{Escape: '\\'}.Expand(tt.in, env)
		if err != nil || x.Text != tt.want {
			t.Errorf("Expand(%s) = %q, %v, want %q", tt.in, x.Text, err, tt.want)
		}
	}
}

func TestExpandErrors(t *testing.T) {
	for in, want := range map[string]string{
		"${a":           "no '}'",
		"${":            "no '}'",
		"${}":           "no variable",
		"${{a}}":        "no variable",
		"${:x}":         "no variable",
		"${a:x}":        `modifier ":x"`,
		"${a^^}":        `modifier "^"`,
		"${a:-x":        "no '}'",
		"${a/x":         "no '/'",
		"${a/x/y":       "no '}'",
		"'a":            "single quote",
		`"a`:            "double quote",
		"${unset:?}":    "unset: is not set",
		"${empty:?}":    "empty: is empty",
		"${unset:?boo}": "unset: boo",
		`${a#\x}`:       "escape",
		strings.Repeat("${u:-", 100) + strings.Repeat("}", 100): "nested",
		"${long//a/" + strings.Repeat("y", 3000) + "}":          "more than",
	} {
		_, err := Expander{Escape: '\\'}.Expand(in, vars{"a": "apple", "empty": "", "long": strings.Repeat("a", 1000)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Expand(%.40s): error %v, want one with %q", in, err, want)
		}
	}
}

func TestExpandModes(t *testing.T) {
	env := vars{"a": "apple", "two": "x y"}
	keep := Expander{Escape: '\\', KeepQuotes: true, SkipUnset: true}
	if x, err := keep.Expand(`echo "$a" '$a' $unset ${unset} ${unset:-$a}`, env); err != nil || x.Text != `echo "apple" '$a' $unset ${unset} ${unset:-$a}` {
		t.Errorf("keeping quotes: %q, %v", x.Text, err)
	}
	plain := Expander{Escape: '\\', PlainQuote: true}
	if x, err := plain.Expand(`it's "$a" \$a`, env); err != nil || x.Text != `it's "apple" $a` {
		t.Errorf("plain quotes: %q, %v", x.Text, err)
	}
	backtick := Expander{Escape: '`'}
	if x, err := backtick.Expand("c:\\dir `$a $a", env); err != nil || x.Text != "c:\\dir $a apple" {
		t.Errorf("escape by backtick: %q, %v", x.Text, err)
	}
	x, err := Expander{Escape: '\\'}.Expand(`$two "a b" c\ d $none`, env)
	if err != nil || !reflect.DeepEqual(x.Words(), []string{"x", "y", "a b", "c d"}) {
		t.Errorf("words: %q, %v", x.Words(), err)
	}
	if !reflect.DeepEqual(x.Used, []string{"two"}) || !reflect.DeepEqual(x.Unset, []string{"none"}) {
		t.Errorf("used %q, unset %q", x.Used, x.Unset)
	}
}

func TestSuggest(t *testing.T) {
	words := DockerfileWords().names()
	for in, want := range map[string]string{
		"RUNN": "RUN", "FORM": "FROM", "COPPY": "COPY", "ENTYPOINT": "ENTRYPOINT", "xyzzy": "", "wokrdir": "WORKDIR",
		"": "", strings.Repeat("x", 1000): "",
	} {
		if got := Suggest(in, words); got != want {
			t.Errorf("Suggest(%.20q) = %q, want %q", in, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"kitten", "sitting", 3}, {"form", "from", 1}, {"αβ", "αγ", 1}} {
		if got := Distance(tt.a, tt.b); got != tt.want {
			t.Errorf("Distance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}
