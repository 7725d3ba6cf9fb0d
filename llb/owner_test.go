package llb

import (
	"reflect"
	"testing"
)

// TestWithUser has a group that is left out be the user's own.
func TestWithUser(t *testing.T) {
	for name, want := range map[string]ChownOpt{
		"7":        {User: &UserOpt{UID: 7}},
		"7:":       {User: &UserOpt{UID: 7}},
		"app":      {User: &UserOpt{Name: "app"}},
		"app:":     {User: &UserOpt{Name: "app"}},
		"root:":    {User: &UserOpt{}},
		"7:8":      {User: &UserOpt{UID: 7}, Group: &UserOpt{UID: 8}},
		"7:root":   {User: &UserOpt{UID: 7}, Group: &UserOpt{}},
		"app:team": {User: &UserOpt{Name: "app"}, Group: &UserOpt{Name: "team"}},
	} {
		if got := WithUser(name); !reflect.DeepEqual(got, want) {
			t.Errorf("WithUser(%q) = %+v, want %+v", name, got, want)
		}
	}
}
