package jsonkit_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/compute-agent/compute-agent/internal/jsonkit"
)

// all is every kind of member.
type all struct {
	Text  string            `json:"text"`
	Some  string            `json:"some,omitempty"`
	Count uint64            `json:"count"`
	Level int               `json:"level"`
	At    time.Time         `json:"at"`
	Raw   json.RawMessage   `json:"raw"`
	List  []string          `json:"list"`
	Less  int               `json:"less,omitempty"`
	True  bool              `json:"true,omitempty"`
	Texts map[string]string `json:"texts,omitempty"`
	One   *one              `json:"one,omitempty"`
	Each  []one             `json:"each"`
}

type one struct {
	Text string `json:"text"`
}

func (v one) AppendJSON(b []byte) ([]byte, error) {
	o := jsonkit.Object{Buf: b}
	o.String("text", v.Text)
	return o.Close()
}

// unable can't be written.
type unable struct{}

func (unable) AppendJSON([]byte) ([]byte, error) { return nil, errors.New("unable") }

func (a all) AppendJSON(b []byte) ([]byte, error) {
	o := jsonkit.Object{Buf: b}
	o.String("text", a.Text)
	o.Some("some", a.Some)
	o.Uint("count", a.Count)
	o.Int("level", a.Level)
	o.Time("at", a.At)
	o.Raw("raw", a.Raw)
	o.Any("list", a.List)
	o.SomeInt("less", a.Less)
	o.True("true", a.True)
	o.Texts("texts", a.Texts)
	if a.One != nil {
		jsonkit.One(&o, "one", *a.One)
	}
	jsonkit.Each(&o, "each", a.Each)
	return o.Close()
}

// What an object writes is what encoding/json reads, whatever is in it.
func TestObject(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := all{
			Text: rapid.String().Draw(t, "text"), Some: rapid.String().Draw(t, "some"),
			Count: rapid.Uint64().Draw(t, "count"), Level: rapid.Int().Draw(t, "level"),
			At:   time.Unix(rapid.Int64Range(0, 1<<35).Draw(t, "s"), rapid.Int64Range(0, 1e9-1).Draw(t, "ns")).UTC(),
			Raw:  json.RawMessage(rapid.SampledFrom([]string{`{"a":[1,2]}`, "[]", "null", `"<é>"`}).Draw(t, "raw")),
			List: rapid.SliceOfN(rapid.String(), 0, 3).Draw(t, "list"),
			Less: rapid.IntRange(-1, 1).Draw(t, "less"), True: rapid.Bool().Draw(t, "true"),
			Each: rapid.SampledFrom([][]one{nil, {}, {{"a"}}, {{"a"}, {"é"}}}).Draw(t, "each"),
		}
		if some := rapid.MapOfN(rapid.String(), rapid.String(), 0, 3).Draw(t, "texts"); len(some) > 0 {
			want.Texts = some
		}
		if rapid.Bool().Draw(t, "one") {
			want.One = &one{rapid.String().Draw(t, "text of one")}
		}
		raw, err := jsonkit.Append([]byte("head"), want)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := jsonkit.Marshal(want)
		if err != nil || string(whole) != string(raw[len("head"):]) {
			t.Fatalf("Marshal gives %s, %v, Append %s", whole, err, raw)
		}
		var got all
		if err := json.Unmarshal(raw[len("head"):], &got); err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", raw, diff)
		}
	})
}

func TestEdges(t *testing.T) {
	empty := jsonkit.Object{}
	if raw, err := empty.Close(); string(raw) != "{}" || err != nil {
		t.Errorf("an object without members is %s, %v", raw, err)
	}
	null := jsonkit.Object{Buf: []byte("x")}
	null.Raw("r", nil)
	if raw, err := null.Close(); string(raw) != `x{"r":null}` || err != nil {
		t.Errorf("an empty raw member: %s, %v", raw, err)
	}
	if raw := jsonkit.AppendString(nil, "a\xffb"); !json.Valid(raw) {
		t.Errorf("a string that is no UTF-8: %q", raw)
	}
	for name, write := range map[string]func(*jsonkit.Object){
		"a time that RFC 3339 has not": func(o *jsonkit.Object) { o.Time("at", time.Date(12345, 1, 1, 0, 0, 0, 0, time.UTC)) },
		"a value that JSON has not":    func(o *jsonkit.Object) { o.Any("c", make(chan int)) },
		"a member that can't be":       func(o *jsonkit.Object) { jsonkit.One(o, "u", unable{}) },
		"a list of what can't be":      func(o *jsonkit.Object) { jsonkit.Each(o, "u", []unable{{}}) },
	} {
		o := jsonkit.Object{}
		write(&o)
		o.String("then", "more")
		if raw, err := o.Close(); err == nil {
			t.Errorf("%s gives %s", name, raw)
		}
	}
	if raw, err := jsonkit.Marshal(unable{}); err == nil {
		t.Errorf("a value that can't be written is %s", raw)
	}
	if _, err := jsonkit.Append(nil, json.RawMessage(`{"cut`)); err == nil {
		t.Error("a raw message that is no JSON was written")
	}
}
