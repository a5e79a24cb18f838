"""The workshop behind `data.synth`: reliefs, components, layout, camera. Nothing here is public.

How a scene comes about, and where to read it:

    relief.py      a height field with a material per pixel; distance functions, noise, rust
    fasteners.py   machinery.py   electrics.py      one function per component, drawn as a relief
    layout.py      where each component sits on the housing, how high, how often it is missing
    housing.py     the empty housing on its bench: what shows when a part is absent
    occluders.py   cables, tools and rags that lie over the parts;   defects.py   scratches, pits, stains
    kit.py         everything above rendered once per (resolution, seed) and kept
    shading.py     light, shadow, lens and sensor: from height and material to a photograph
    labels.py      what an annotator got wrong, on purpose
    sheet.py       many scenes in one picture, for the documentation
"""
