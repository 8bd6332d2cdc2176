"""The paper artifact around dreamlib: parameters, stages, studies, reports."""
