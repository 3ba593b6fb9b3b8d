"""Changes of an ONNX graph so that every build of ONNX Runtime has what it needs, that for browsers too.

Builds for browsers leave out operations of rare dtypes. Not here: what jax2onnx makes.
"""

import onnx
from onnx import TensorProto, helper, shape_inference

WIDENED = ("Where",)
"""Operations that ONNX Runtime's WebAssembly (1.30) lacks for uint32. They are done in int64, which holds all of it."""


def make_portable(model: onnx.ModelProto) -> None:
    """Puts casts around the operations that a browser's build lacks; the results are the same numbers."""
    graph = model.graph
    inferred = shape_inference.infer_shapes(model).graph
    dtypes = {each.name: each.type.tensor_type.elem_type for each in (*inferred.value_info, *inferred.output)}
    dtypes |= {each.name: each.type.tensor_type.elem_type for each in graph.input}
    dtypes |= {each.name: each.data_type for each in graph.initializer}
    nodes = []
    for number, node in enumerate(graph.node):
        (output, *_) = node.output
        if node.op_type not in WIDENED or dtypes.get(output) != TensorProto.UINT32:
            nodes.append(node)
            continue
        for place, given in enumerate(node.input):
            if dtypes.get(given) == TensorProto.UINT32:
                node.input[place] = f"{given}/wide/{number}/{place}"
                nodes.append(helper.make_node("Cast", [given], [node.input[place]], to=TensorProto.INT64))
        node.output[0] = f"{output}/wide"
        nodes += [node, helper.make_node("Cast", [node.output[0]], [output], to=TensorProto.UINT32)]
    del graph.node[:]
    graph.node.extend(nodes)
