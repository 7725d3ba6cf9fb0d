package frontend

// Subrequest tells of a question that a frontend answers in place of a build, as
// frontend.subrequests.describe lists it in JSON (BuildKit's
// frontend/subrequests).
type Subrequest struct {
	Name        string            `json:"name"`
	Version     string            `json:"version"`
	Type        string            `json:"type"` // "rpc"
	Description string            `json:"description"`
	Opts        []SubrequestField `json:"opts"`
	Inputs      []SubrequestField `json:"inputs"`
	Metadata    []SubrequestField `json:"metadata"` // of the answer
	Refs        []SubrequestField `json:"refs"`
}

// SubrequestField is something that a question takes, or that its answer has.
type SubrequestField struct {
	Name        string `json:"name"`
	Description string `json:"description"`
}
