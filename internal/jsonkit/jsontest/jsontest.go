// Package jsontest holds records that write their own JSON against encoding/json.
package jsontest

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/jsonkit"
)

// Same checks that a record's AppendJSON writes what encoding/json does: of full, in which
// no member may be left out, of full with each member empty in its turn, and of the empty
// record. A member that is added to the record and not to its AppendJSON is found so.
func Same[T jsonkit.Appender](t *testing.T, full T) {
	t.Helper()
	v := reflect.ValueOf(&full).Elem()
	same(t, full)
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		if v.Field(i).IsZero() {
			t.Errorf("%T.%s is empty: fill it, so that it is tried", full, name)
		}
		one := reflect.New(v.Type()).Elem()
		one.Set(v)
		one.Field(i).SetZero()
		if less, ok := reflect.TypeAssert[T](one); ok {
			same(t, less)
		}
	}
	var none T
	same(t, none)
}

func same[T jsonkit.Appender](t *testing.T, v T) {
	t.Helper()
	want, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	got, err := v.AppendJSON(nil)
	if err != nil {
		t.Errorf("%+v: %v", v, err)
		return
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%T: encoding/json (-) and AppendJSON (+):\n%s", v, diff)
	}
}
