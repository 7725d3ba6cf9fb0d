package llb

import "errors"

// Kinds, names and output counts of the operations. To be moved into one file an op.

func (*SourceOp) Kind() string      { return "source" }
func (*ExecOp) Kind() string        { return "exec" }
func (*FileOp) Kind() string        { return "file" }
func (*BuildOp) Kind() string       { return "build" }
func (*MergeOp) Kind() string       { return "merge" }
func (*DiffOp) Kind() string        { return "diff" }
func (*PassthroughOp) Kind() string { return "passthrough" }

func (o *SourceOp) Name() string      { return o.Identifier }
func (o *ExecOp) Name() string        { return "exec" }
func (o *FileOp) Name() string        { return "file" }
func (o *BuildOp) Name() string       { return "build" }
func (o *MergeOp) Name() string       { return "merge" }
func (o *DiffOp) Name() string        { return "diff" }
func (o *PassthroughOp) Name() string { return "passthrough" }

func (o *SourceOp) Outputs() int      { return 1 }
func (o *ExecOp) Outputs() int        { return 1 }
func (o *FileOp) Outputs() int        { return 1 }
func (o *BuildOp) Outputs() int       { return 1 }
func (o *MergeOp) Outputs() int       { return 1 }
func (o *DiffOp) Outputs() int        { return 1 }
func (o *PassthroughOp) Outputs() int { return len(o.Output) }

var errStub = errors.New("to be written")

func (o *SourceOp) verify(int) error      { return errStub }
func (o *ExecOp) verify(int) error        { return errStub }
func (o *FileOp) verify(int) error        { return errStub }
func (o *BuildOp) verify(int) error       { return errStub }
func (o *MergeOp) verify(int) error       { return errStub }
func (o *DiffOp) verify(int) error        { return errStub }
func (o *PassthroughOp) verify(int) error { return errStub }

func (*DoCopy) fileDo()    {}
func (*DoMkfile) fileDo()  {}
func (*DoMkdir) fileDo()   {}
func (*DoRm) fileDo()      {}
func (*DoSymlink) fileDo() {}
